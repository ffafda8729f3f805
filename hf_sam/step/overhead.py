"""SAM's overhead: the time of training steps beyond one forward-backward pass."""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)


class Overhead:
    """Sums the time of training steps minus that of the one pass that any Trainer makes.

    On an accelerator it is measured by events in the device's stream, which are read after they
    have completed, without synchronising.
    """

    def __init__(self, device: torch.device) -> None:
        """Start at zero.

        Args:
            device: The device of the model.
        """
        self._device = device
        self._pending: deque[tuple[int, Any, Any]] = deque()  # sign, begin, end
        self._seconds, self._has_steps = 0.0, False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Context manager that adds the time of the block: a whole training step with SAM."""
        self._has_steps = True
        yield from self._count(1)

    @contextmanager
    def plain_pass(self) -> Iterator[None]:
        """Context manager that subtracts the time of the block: the pass of any Trainer."""
        yield from self._count(-1)

    def noted_in(self, output: Any, *, allowed: float | None) -> float | None:
        """Note a run's overhead in its metrics as `train_overhead`, and return it.

        Args:
            output: What `train` has returned; None, and nothing is noted, of a class that returns
                nothing. Nor is it of a training without a step, as one that had ended.
            allowed: As for `of`.
        """
        metrics = getattr(output, "metrics", {})
        if "train_runtime" not in metrics or not self._has_steps:
            return None
        metrics["train_overhead"] = self.of(metrics["train_runtime"], allowed=allowed)
        return metrics["train_overhead"]

    def of(self, runtime: float, *, allowed: float | None = None) -> float:
        """Return a run's time divided by its time without SAM's part; synchronises.

        Args:
            runtime: In seconds.
            allowed: The limit that was planned for, in passes. Warns if the part of the result
                above 1 is more than twice that of the limit.
        """
        if self._pending:
            self._pending[-1][2].synchronize()
            self._drain()
        overhead = runtime / (runtime - min(self._seconds, 0.99 * runtime)) if runtime else 1.0
        if allowed is not None and overhead - 1.0 > 2.0 * (allowed - 1.0):
            logger.warning(
                f"`max_overhead={allowed}`: the run took {overhead:.2f} times the base "
                "optimizer's, as a pass over a part of a micro-batch takes about as long here as "
                f"one over all of it: set `ascent_interval={math.ceil(1.0 / (allowed - 1.0))}` "
                "instead, or larger micro-batches."
            )
        return overhead

    def _count(self, sign: int) -> Iterator[None]:
        if self._device.type == "cpu":
            begin = time.perf_counter()
            try:
                yield
            finally:
                self._seconds += sign * (time.perf_counter() - begin)
            return
        begin_mark = self._mark()
        try:
            yield
        finally:
            self._pending.append((sign, begin_mark, self._mark()))
            self._drain()

    def _mark(self) -> Any:
        mark = torch.get_device_module(self._device).Event(enable_timing=True)
        mark.record()
        return mark

    def _drain(self) -> None:
        while self._pending and self._pending[0][2].query():
            sign, begin, end = self._pending.popleft()
            self._seconds += sign * begin.elapsed_time(end) / 1e3
