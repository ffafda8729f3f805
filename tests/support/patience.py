"""A command may take as long as it works: one that has stopped is ended, and its stacks are shown.

A limit by the clock would end it on a machine that others keep busy. What counts is the processor
time of a process and of all below it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from threading import Event
from typing import IO

import psutil

CPU = 900.0  # processor seconds that a command may take: several times what any of ours does
IDLE = 120.0  # seconds by the clock
SHARE = 0.02  # of a core that it has in them at least; torchrun with idle ranks takes 0.007


class StoppedError(RuntimeError):
    """A command was ended, as it did not work or worked too long."""


def run(
    command: Sequence[str | Path],
    *,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cpu: float = CPU,
    idle: float = IDLE,
    unwanted: Event | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its status and what it has written.

    Args:
        command: Of a Python process, to have its stacks when it is ended.
        check: Whether a status other than 0 is an error.
        env: In place of this process's.
        cpu: Processor seconds of the process and all below it, after which it is ended.
        idle: Seconds by the clock, after which it is ended if it has hardly worked in them.
        unwanted: Set by another thread to end it early.

    Raises:
        StoppedError: If it was ended, with the end of what it wrote: the stacks of all its threads.
        RuntimeError: If it failed, with the end of what it wrote on stderr.
    """
    environ = {**(os.environ if env is None else env), "PYTHONFAULTHANDLER": "1"}
    with TemporaryFile("w+", errors="replace") as out, TemporaryFile("w+", errors="replace") as err:
        process = subprocess.Popen(
            [*map(str, command)], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environ
        )
        try:
            fault = fault_of(process, cpu=cpu, idle=idle, unwanted=unwanted)
        finally:  # after Ctrl-C too
            end(process)
        done = subprocess.CompletedProcess(
            process.args, process.returncode, written(out), written(err)
        )
    if fault is not None:
        raise StoppedError(f"{fault}:\n{done.stdout[-3000:]}\n{done.stderr[-20000:]}")
    if check and done.returncode:
        raise RuntimeError(f"Ended with status {done.returncode}:\n{done.stderr[-6000:]}")
    return done


def written(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def fault_of(
    process: subprocess.Popen[bytes], *, cpu: float, idle: float, unwanted: Event | None = None
) -> str | None:
    """Wait until the process has ended, or return why it has to be."""
    since, before = time.monotonic(), 0.0
    while True:
        if unwanted is not None and unwanted.is_set():
            return "No longer wanted"
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=min(1.0, idle / 4))
            return None
        spent, now = cpu_seconds(process.pid), time.monotonic()
        if spent > cpu:
            return f"Worked for more than {cpu:.0f} seconds"
        if spent - before > SHARE * idle:
            since, before = now, spent
        elif now - since > idle:
            return f"Worked for {spent - before:.1f} seconds in the last {idle:.0f}"


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it; none if it has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all below it, also of those that have ended."""
    spent = 0.0
    for process in tree(pid):
        with suppress(psutil.Error):
            spent += sum(process.cpu_times()[:4])
    return spent


def end(process: subprocess.Popen[bytes]) -> None:
    """Have every Python process below write its stacks and die, and kill what does not.

    One after the other, or they write into each other's lines; from above, or torchrun ends the
    others at the first that dies.
    """
    if process.poll() is not None:
        return
    for each in tree(process.pid):
        with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            each.send_signal(signal.SIGABRT)
            each.wait(timeout=5)
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
