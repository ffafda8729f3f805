"""Run as a process of its own: in each scope a child trains until SIGKILL strikes it."""

import os
import random
import signal
import sys
from pathlib import Path

import offline  # noqa: F401  # no network
import scenarios
import steady

if __name__ == "__main__":
    draw = random.Random(int(sys.argv[2]))
    steady.import_all()
    for scope in sys.argv[3:]:
        forward = draw.randrange(5, 32)  # of 8 steps x 2 micro-batches x 2 passes
        child = os.fork()
        if child == 0:
            scenarios.train_until_killed(scope, Path(sys.argv[1]) / scope, forward)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, f"{scope} outlived pass {forward}"
