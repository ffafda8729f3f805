"""Two real processes under DDP: each rank ascends on its own micro-batch, as in the paper."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_two_ranks_equal_the_oracle(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, "--standalone", str(HERE / "ranks.py"), str(tmp_path)],
        env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    results = [tmp_path / f"rank{rank}.json" for rank in (0, 1)]
    assert all(path.exists() for path in results), done.stderr[-3000:]
    for path in results:
        errors = json.loads(path.read_text())
        assert len(errors) == 6
        assert all(error < 1e-12 for error in errors.values()), errors
