"""Real processes under DDP: one launch runs a whole list of checks on every rank.

`Launch` starts torchrun; this file is also what it runs on each rank.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import patience

END = "end"  # the name of a rank's last line


class Launch(Mapping[str, list[Any]]):
    """What each rank reported, by check: a report is waited for until it is there."""

    def __init__(
        self, ranks: int, suite: str, folder: Path, *arguments: str, cpu: float = patience.CPU
    ) -> None:
        """Start the ranks.

        Args:
            ranks: How many.
            suite: From `rank_suites.SUITES`.
            folder: An empty one, for the reports and what the checks write.
            *arguments: Of the suite.
            cpu: Processor seconds that all of it may take.
        """
        folder.mkdir(exist_ok=True)
        self._files = [folder / f"rank{rank}.jsonl" for rank in range(ranks)]
        self._unwanted, pool = Event(), ThreadPoolExecutor(max_workers=1)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        self._run = pool.submit(
            patience.run,
            [*command, "--nproc_per_node", str(ranks), __file__, suite, folder, *arguments],
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            check=False,
            cpu=cpu,
            unwanted=self._unwanted,
        )
        pool.shutdown(wait=False)

    def __getitem__(self, check: str) -> list[Any]:
        """Return each rank's report of a check, or raise a RuntimeError if one did not finish."""
        while True:
            is_over = self._run.done()  # asked first: nothing is written after
            ranks = self._read()
            if all(check in rank for rank in ranks):
                return [rank[check] for rank in ranks]
            if is_over:
                self.wait()
                raise KeyError(check)
            time.sleep(0.1)

    def __iter__(self) -> Iterator[str]:
        """Name all checks, when all are done."""
        self.wait()
        return (name for name in self._read()[0] if name != END)

    def __len__(self) -> int:
        """Count all checks, when all are done."""
        return sum(1 for _ in self)

    def wait(self) -> None:
        """Wait for the end, or raise a RuntimeError with the traceback if a rank did not finish."""
        done = self._run.result()
        if not all(END in rank for rank in self._read()):
            # judged by the files: gloo sometimes aborts a rank at its very end
            raise RuntimeError(f"A rank did not finish:\n{done.stderr[-6000:]}")

    def end(self) -> None:
        """End the ranks, if they are not done: nobody waits for a report any more."""
        self._unwanted.set()
        wait([self._run])

    def _read(self) -> list[dict[str, Any]]:
        texts = [path.read_text() if path.exists() else "" for path in self._files]
        whole = [text[: text.rfind("\n") + 1].splitlines() for text in texts]
        return [dict(json.loads(line) for line in lines) for lines in whole]


def launch(*arguments: Any, **limits: float) -> Launch:
    """Run every check of a suite to its end: the arguments are those of `Launch`."""
    done = Launch(*arguments, **limits)
    done.wait()
    return done


@contextmanager
def launched(*arguments: Any) -> Iterator[Launch]:
    """Context manager with a launch that goes on in the background, and is ended with the block."""
    running = Launch(*arguments)
    try:
        yield running
    finally:
        running.end()


def work(suite: str, folder: Path, arguments: list[str]) -> None:
    """Run the checks of this rank; a check returns what is written into its report."""
    import offline  # noqa: F401  # no network
    import rank_suites
    import steady
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    with (folder / f"rank{rank}.jsonl").open("w") as report:
        for name, check in rank_suites.SUITES[suite](folder, *arguments):
            steady.keep_imports()
            try:
                result = check()
            except Exception as error:  # the other ranks fail too, or are ended when they only wait
                result = {"failed": f"{type(error).__name__}: {error}"}
                traceback.print_exc()
            print(json.dumps([name, result]), file=report, flush=True)
        print(json.dumps([END, None]), file=report, flush=True)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
