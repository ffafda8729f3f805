"""Continuous integration and releases: the workflows are YAML, and what they call is there."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from places import ROOT

WORKFLOWS = {path.stem: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def jobs_of(name: str) -> dict[str, Any]:
    return yaml.safe_load(WORKFLOWS[name].read_text())["jobs"]


def steps_of(name: str) -> Iterator[dict[str, Any]]:
    for job in jobs_of(name).values():
        yield from job["steps"]


def make_targets(text: str) -> set[str]:
    called = re.findall(r"^\s*make (.+)$", text, flags=re.MULTILINE)
    return {target for targets in called for target in targets.split()}


def test_there_are_two() -> None:
    assert set(WORKFLOWS) == {"ci", "release"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_steps_do_one_thing_each(name: str) -> None:
    for step in steps_of(name):
        assert ("run" in step) != ("uses" in step)
        assert "@" in step.get("uses", "@")


def test_the_make_targets_exist() -> None:
    runs = "\n".join(step.get("run", "") for name in WORKFLOWS for step in steps_of(name))
    assert make_targets(runs) == {"install", "check", "test", "package"}
    assert make_targets(runs) <= TARGETS
    assert make_targets((ROOT / ".ci" / "run").read_text()) <= TARGETS


def test_the_tests_that_are_named_exist() -> None:
    runs = " ".join(step.get("run", "") for step in steps_of("ci"))
    named = set(re.findall(r"\btests/[\w/.]+", runs))
    assert len(named) == 8
    assert all((ROOT / name).exists() for name in named)
    [(file, test)] = re.findall(r"--deselect (\S+)::(\w+)", runs)
    assert f"def {test}(" in (ROOT / file).read_text()


def test_pythons_are_those_that_the_package_names() -> None:
    named = {entry.rsplit(" ", 1)[-1] for entry in PROJECT["classifiers"]}
    jobs = jobs_of("ci")
    tested = set(jobs["test"]["strategy"]["matrix"]["python"])
    assert tested == {"3.11", "3.13"}
    for name in ("lowest", "newest"):
        [setup] = [step for step in jobs[name]["steps"] if "python-version" in step.get("with", {})]
        tested.add(setup["with"]["python-version"])
    assert tested <= named
    assert PROJECT["requires-python"] == ">=" + min(tested)


def test_the_lowest_releases_are_the_floors() -> None:
    script = [sys.executable, ROOT / ".github" / "lowest.py"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    lowest = [Requirement(line) for line in done.stdout.splitlines()]
    allowed = [Requirement(line) for line in PROJECT["dependencies"]]
    assert [low.name for low in lowest] == [other.name for other in allowed]
    for low, other in zip(lowest, allowed, strict=True):
        [exact] = low.specifier
        assert exact.operator == "=="
        assert exact.version in other.specifier
        assert f">={exact.version}" in str(other.specifier)


def test_only_publishing_may_write() -> None:
    """A token of the repository's own would be a secret to keep."""
    for path in WORKFLOWS.values():
        assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
        assert "secrets." not in path.read_text()
    jobs = jobs_of("release")
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
