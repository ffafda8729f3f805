"""How far all measurements of a command are: which has begun, and about how long the rest takes."""

import time
from collections.abc import Mapping


class Progress:
    """Says each measurement as it begins, of how many, and what is left by their costs."""

    def __init__(self, costs: Mapping[str, float]) -> None:
        """Take all measurements.

        Args:
            costs: Of each, by its name, about, in forward-backward passes; in their order.
        """
        self._names = list(costs)
        self._costs = dict(costs)
        self._running: str | None = None
        self._began = 0.0
        self._seconds, self._spent = 0.0, 0.0  # of what was measured; cost likewise

    def begin(self, name: str) -> None:
        """Say that a measurement begins, and that the one before it has ended."""
        self._end()
        self._running, self._began = name, time.monotonic()
        left = sum(self._costs[other] for other in self._names[self._names.index(name) :])
        said = f"[{self._names.index(name) + 1}/{len(self._names)}] {name}"
        if self._spent:
            said += f"; about {_duration(left * self._seconds / self._spent)} left"
        print(said, flush=True)

    def skip(self, beginning: str) -> None:
        """Count those whose names begin so as done: they were measured before."""
        self._costs |= {name: 0.0 for name in self._names if name.startswith(beginning)}

    def _end(self) -> None:
        if self._running is not None:
            self._seconds += time.monotonic() - self._began
            self._spent += self._costs[self._running]


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
