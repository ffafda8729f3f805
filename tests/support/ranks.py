"""Real processes under DDP: one launch runs a whole list of checks on every rank.

`launch` starts torchrun; this file is also what it runs on each rank.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import patience


def launch(
    ranks: int, suite: str, folder: Path, *arguments: str, cpu: float = patience.CPU
) -> dict[str, list]:
    """Run every check of `suite` on gloo ranks, and return what each rank reported, by check.

    Raises:
        RuntimeError: With the stacks or the traceback, if a rank did not finish.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    done = patience.run(
        [*command, str(ranks), __file__, suite, folder, *arguments],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        check=False,
        cpu=cpu,
    )
    reports = [folder / f"rank{rank}.jsonl" for rank in range(ranks)]
    finished = all(path.exists() and path.read_text().endswith('"end"\n') for path in reports)
    if not finished:  # judged by the files: gloo sometimes aborts a rank at its very end
        raise RuntimeError(f"A rank did not finish:\n{done.stderr[-6000:]}")
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in reports]
    return {name: [rank[i][1] for rank in lines] for i, (name, _) in enumerate(lines[0][:-1])}


def work(suite: str, folder: Path, arguments: list[str]) -> None:
    """Run the checks of this rank; a check returns what is written into its report."""
    import offline  # noqa: F401  # no network
    import rank_suites
    import steady
    import torch.distributed as dist

    steady.keep_imports()
    rank = int(os.environ["RANK"])
    with (folder / f"rank{rank}.jsonl").open("w") as report:
        for name, check in rank_suites.SUITES[suite](folder, *arguments):
            try:
                result = check()
            except Exception as error:  # the other ranks fail too, or are ended when they only wait
                result = {"failed": f"{type(error).__name__}: {error}"}
                traceback.print_exc()
            print(json.dumps([name, result]), file=report, flush=True)
        print(json.dumps("end"), file=report, flush=True)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
