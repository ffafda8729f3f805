"""Is an ascent due at an optimizer step, and with which share of rho."""

import math
from dataclasses import dataclass

RHO_SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class AscentSchedule:
    """When a run perturbs, as a function of the optimizer step alone: every rank knows it.

    Cost in forward-backward passes a step: 1 + (1 - start / total) / interval.
    """

    interval: int = 1  # optimizer steps from one ascent to the next
    start: int = 0  # optimizer steps before the first ascent
    shape: str = "constant"  # of rho, from RHO_SCHEDULES
    warmup: int = 0  # optimizer steps in which the learning rate rises
    total: int = 0  # optimizer steps of the run

    @property
    def begin(self) -> int:
        """The first step with an ascent; a rho that falls does so from the end of the warm-up on.

        (A rho that begins after the warm-up: arXiv 2401.12033, ViT-S/32 on ImageNet.)
        """
        return self.start if self.shape == "constant" else max(self.start, self.warmup)

    def share_at(self, step: int) -> float:
        """Return the share of rho at a step, in [0, 1]; 0 where no ascent is due.

        Args:
            step: Optimizer steps made before it.
        """
        if step < self.begin or (step - self.begin) % self.interval:
            return 0.0
        if self.shape == "constant":
            return 1.0
        progress = min(1.0, (step - self.begin) / max(1, self.total - self.begin))
        if self.shape == "linear":
            return 1.0 - progress
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    def ascents(self, steps: int) -> int:
        """Return how many of a run's first `steps` optimizer steps ascend."""
        return max(0, math.ceil((steps - self.begin) / self.interval))


def steps_of(start: float, total: int) -> int:
    """Return the optimizer steps that `ascent_start` stands for, as for `warmup_steps`.

    Args:
        start: Below 1 a share of the run's steps, from 1 on steps.
        total: Optimizer steps of the run.
    """
    return math.ceil(start * total) if start < 1 else int(start)
