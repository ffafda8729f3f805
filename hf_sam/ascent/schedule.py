"""Is an ascent due at an optimizer step, with which share of rho, on which share of the batch."""

import math
import random
from dataclasses import dataclass, replace

RHO_SCHEDULES = ("constant", "linear", "cosine")
SMALLEST_FRACTION = 0.125  # of a micro-batch for `max_overhead`: the smallest that was measured
SMALLEST_CUT = 2  # rows: BatchNorm refuses one, and a contrastive loss of one is 0


@dataclass(frozen=True)
class AscentSchedule:
    """When a run perturbs, as a function of the optimizer step alone: every rank knows it.

    Cost in forward-backward passes a step, with shares of whole rows: 1 + fraction probability
    (1 - start / total) / interval.
    """

    interval: int = 1  # optimizer steps from one ascent to the next
    start: int = 0  # optimizer steps before the first ascent
    shape: str = "constant"  # of rho, from RHO_SCHEDULES
    warmup: int = 0  # optimizer steps in which the learning rate rises
    total: int = 0  # optimizer steps of the run
    probability: float = 1.0  # with which a step that is due ascends
    seed: int = 0  # of the coin
    fraction: float = 1.0  # of each micro-batch that the clean pass sees; 0 where there is none
    rows: int = 0  # of a full micro-batch; 0 where that is unknown
    least: int = 1  # rows of a share

    @property
    def is_idle(self) -> bool:
        """Whether a run of known length has no ascent."""
        return self.total > 0 and self.ascents(self.total) == 0

    @property
    def realised_fraction(self) -> float:
        """The fraction in whole rows of a full micro-batch."""
        if self.rows == 0 or self.fraction == 0:
            return self.fraction
        return self.kept(self.rows) / self.rows

    def kept(self, rows: int) -> int:
        """Return how many rows of a micro-batch's the clean pass sees: a share is rounded up."""
        return min(rows, max(self.least, math.ceil(round(self.fraction * rows, 9))))

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
        if not self._is_due(step):
            return 0.0
        if self.shape == "constant":
            return 1.0
        progress = min(1.0, (step - self.begin) / max(1, self.total - self.begin))
        if self.shape == "linear":
            return 1.0 - progress
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    def ascents(self, steps: int) -> int:
        """Return how many of a run's first `steps` optimizer steps ascend."""
        if self.probability == 1.0:
            return max(0, math.ceil((steps - self.begin) / self.interval))
        return sum(self._is_due(step) for step in range(self.begin, steps, self.interval))

    def passes(self, steps: int) -> float:
        """Return the forward-backward passes over an effective batch in the first `steps`."""
        return steps + self.realised_fraction * self.ascents(steps)

    def _is_due(self, step: int) -> bool:
        since = step - self.begin
        return since >= 0 and since % self.interval == 0 and coin(self.seed, step, self.probability)


def coin(seed: int, step: int, probability: float) -> bool:
    """Say whether a step ascends, the same on every rank and in every life of a run.

    Args:
        seed: Of the run.
        step: Optimizer steps made before it.
        probability: Of an ascent.
    """
    return probability == 1.0 or random.Random(f"{seed}-{step}").random() < probability


def within(schedule: AscentSchedule, max_overhead: float) -> AscentSchedule:
    """Return the schedule whose clean passes cost at most `max_overhead - 1` runs.

    It is the one with the smallest interval at which an eighth of each micro-batch, and two rows,
    can be paid for, and at that interval the largest share that can, in whole rows. Where
    micro-batches cannot be cut that is the smallest interval of whole ones.

    Args:
        schedule: With the run's optimizer steps, and the rows into which a micro-batch can be cut.
        max_overhead: Passes of the run, over those of the base optimizer's; above 1.

    Returns:
        Without any ascent if one is more than that.
    """
    payable = (max_overhead - 1.0) * (1.0 + 1e-9) * schedule.total  # passes over all rows
    due, rows = schedule.total - schedule.begin, schedule.rows
    for interval in range(1, due + 1):
        share = min(1.0, payable / math.ceil(due / interval))
        kept = math.floor(share * rows)
        if share >= SMALLEST_FRACTION and kept >= min(SMALLEST_CUT, rows):
            return replace(schedule, interval=interval, fraction=kept / rows)
    return replace(schedule, start=schedule.total)


def steps_of(start: float, total: int) -> int:
    """Return the optimizer steps that `ascent_start` stands for, as for `warmup_steps`.

    Args:
        start: Below 1 a share of the run's steps, from 1 on steps.
        total: Optimizer steps of the run.
    """
    return math.ceil(start * total) if start < 1 else int(start)
