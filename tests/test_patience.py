"""The limit of the tests' own commands: it ends what has stopped, and not what is kept waiting."""

import subprocess
import sys
from pathlib import Path

import patience
import psutil
import pytest

# Takes its seconds of processor time, however long that is by the clock.
WORKS = """
import sys, time
while time.process_time() < float(sys.argv[1]):
    pass
print("worked")
"""
WAITS = """
import os, subprocess, sys, threading
print("begun", flush=True)
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
with open(sys.argv[1], "w") as file:
    file.write(str(child.pid))
def waits_for_ever():
    threading.Event().wait()
waits_for_ever()
"""


def python(code: str, *words: str | Path) -> list[str]:
    return [sys.executable, "-c", code, *map(str, words)]


def test_what_waits_for_ever_is_ended_with_its_stacks_and_all_below_it(tmp_path: Path) -> None:
    command = python(WAITS, tmp_path / "child")
    said = r"(?s)seconds in the last 4:\nbegun.*in waits_for_ever"
    with pytest.raises(patience.StoppedError, match=said):
        patience.run(command, idle=4.0)
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"


def test_what_works_too_long_is_ended_with_its_stacks() -> None:
    with pytest.raises(patience.StoppedError, match=r"(?s)more than 1 seconds.*Current thread"):
        patience.run(python(WORKS, "600"), cpu=1.0)


def test_what_others_keep_waiting_is_left_alone() -> None:
    """Twice as long as it might be idle, beside more of its kind than there are cores."""
    idle = 3.0
    others = [subprocess.Popen(python(WORKS, "600")) for _ in range(2 * psutil.cpu_count())]
    code = "import time\nend = time.monotonic() + 6\nwhile time.monotonic() < end:\n    pass\n"
    try:
        done = patience.run(python(code + "print(time.process_time())"), idle=idle)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert float(done.stdout) < 5, "nobody kept it waiting"


def test_work_below_counts() -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORKS!r}, '2'])"
    assert patience.run(python(code), idle=1.0).returncode == 0
    with pytest.raises(patience.StoppedError, match="more than 1 seconds"):
        patience.run(python(code), cpu=1.0)


def test_a_command_that_fails_says_why() -> None:
    words = python("import sys; print('this'); sys.exit('that')")
    with pytest.raises(RuntimeError, match="status 1:\nthat"):
        patience.run(words)
    done = patience.run(words, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "this\n", "that\n")
