"""The stages for a GPU, rehearsed on the CPU; one that fails does not keep the next back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import patience
import pytest
from places import ROOT


def run(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return patience.run(
        ["bash", ROOT / "benchmarks" / "gpu.sh", *words],
        env={**os.environ, "PYTHON": sys.executable, "OUT": str(folder), **env},
        check=False,
    )


@pytest.mark.slow
def test_every_stage_runs(tmp_path: Path) -> None:
    done = run(tmp_path, "smoke")
    stages = json.loads((tmp_path / "stages.json").read_text())
    assert {stage["stage"]: stage["status"] for stage in stages} == {
        "tests": 0,
        "conformance": 0,
        "step_cost": 0,
        "deepspeed": 0,
        "smoke": 0,
    }
    assert done.returncode == 0
    found = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert all(found.values())
    assert set(found) == {
        *("stages.json", "log.txt", "conformance.json", "step_cost.json"),
        *("deepspeed.json", "smoke.json", "smoke-records.tar.gz"),
    }
    assert len(json.loads((tmp_path / "smoke.json").read_text())["results"]) == 3


def test_stages_that_fail_are_noted_and_gone_past(tmp_path: Path) -> None:
    """With an interpreter that has nothing installed every stage fails, and each is noted."""
    done = run(tmp_path, "smoke", PYTHON=f"{sys.executable} -I -S")
    stages = json.loads((tmp_path / "stages.json").read_text())
    names = ["tests", "conformance", "step_cost", "deepspeed", "smoke"]
    assert [stage["stage"] for stage in stages] == names
    assert all(stage["status"] != 0 for stage in stages)
    assert done.returncode == 1
