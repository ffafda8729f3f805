"""Progress messages: which measurement has begun, and about how long the others will take."""

import time
from collections.abc import Mapping


class Progress:
    """Prints each measurement as it begins, and the remaining time estimated from the costs."""

    def __init__(self, costs: Mapping[str, float]) -> None:
        """Store the measurements to come.

        Args:
            costs: Approximate cost of each in forward-backward passes, by name and in order.
        """
        self._names = list(costs)
        self._costs = dict(costs)
        self._running: str | None = None
        self._began = 0.0
        self._seconds, self._spent = 0.0, 0.0  # time and cost of what was measured

    def begin(self, name: str) -> None:
        """Print that a measurement begins; the one before it has ended."""
        self._end()
        self._running, self._began = name, time.monotonic()
        left = sum(self._costs[other] for other in self._names[self._names.index(name) :])
        said = f"[{self._names.index(name) + 1}/{len(self._names)}] {name}"
        if self._spent:
            said += f"; about {_duration(left * self._seconds / self._spent)} left"
        print(said, flush=True)

    def skip(self, beginning: str) -> None:
        """Mark the measurements whose names begin like this as done before."""
        self._costs |= {name: 0.0 for name in self._names if name.startswith(beginning)}

    def _end(self) -> None:
        if self._running is not None:
            self._seconds += time.monotonic() - self._began
            self._spent += self._costs[self._running]


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
