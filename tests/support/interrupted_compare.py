"""Run as a process of its own: a comparison is killed again and again until it has ended."""

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import offline  # noqa: F401  # no network
import steady
from images import TINY
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from hf_sam.comparing import compare

EPOCHS, STEPS = 4, 2  # steps of an epoch: 8 training images by 4
SEEDS = 2
# Python's audit events that a file is touched
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "shutil.rmtree")


def plan(data_dir: Path, output_dir: Path) -> list[str]:
    """Six short runs: a sweep of two, then two arms with two seeds."""
    options = f"--num_train_epochs {EPOCHS} --seeds {SEEDS} --max_train_samples 8"
    options += " --max_eval_samples 6 --arms base sam --sweep rho=0.1,0.5"
    options += " --max_steps=-1 --save_strategy=epoch --logging_steps=3"
    folders = ["--data_dir", str(data_dir), "--output_dir", str(output_dir)]
    return [*TINY, *folders, *options.split()]


class Killer(TrainerCallback):
    """Ends the process at the n-th step or touch of a file, and counts the steps in a file."""

    def __init__(self, n: int, output_dir: Path, counted: Path) -> None:
        self.left, self.output_dir, self.counted = n, str(output_dir), counted
        sys.addaudithook(self.on_audit)

    def on_audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and self.output_dir in str(args[0]):
            self.tick()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        with self.counted.open("a") as steps:
            steps.write(".")
        self.tick()

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    data_dir, output_dir, counted = map(Path, sys.argv[1:4])
    draw = random.Random(int(sys.argv[4]))
    steady.import_all()
    lives, status = 0, signal.SIGKILL
    while status == signal.SIGKILL:
        n = draw.randrange(20, 110)
        child = os.fork()
        if child == 0:
            DEFAULT_CALLBACKS.append(Killer(n, output_dir, counted))
            compare.main(plan(data_dir, output_dir))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        lives += 1
    assert status == 0, "the comparison failed by itself"
    print(f"\nlives: {lives}")
