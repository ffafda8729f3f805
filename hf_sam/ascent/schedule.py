"""Ascent schedule: which optimizer steps perturb, with what rho and on what part of the batch."""

import math
import random
from dataclasses import dataclass, replace

RHO_SCHEDULES = ("constant", "linear", "cosine")
SMALLEST_FRACTION = 0.125  # of a micro-batch, for `max_overhead`: none smaller was measured
SMALLEST_CUT = 2  # rows: BatchNorm rejects a single one, and a contrastive loss of one is 0


@dataclass(frozen=True)
class AscentSchedule:
    """When a run perturbs: a function of the optimizer step only, so that all ranks agree.

    Cost in forward-backward passes a step, where the fraction is a number of whole rows:
    1 + fraction * probability * (1 - start / total) / interval.
    """

    interval: int = 1  # optimizer steps from one ascent to the next
    start: int = 0  # optimizer steps before the first ascent
    shape: str = "constant"  # of rho over the steps, from RHO_SCHEDULES
    warmup: int = 0  # optimizer steps of the learning rate's warm-up
    total: int = 0  # optimizer steps of the run
    probability: float = 1.0  # of an ascent at a step where one is due
    seed: int = 0  # of the draws with that probability
    fraction: float = 1.0  # of each micro-batch in the clean pass; 0 without a clean pass
    rows: int = 0  # of a full micro-batch; 0 if unknown
    least: int = 1  # fewest rows of a fraction

    @property
    def is_idle(self) -> bool:
        """Whether a run of known length never ascends."""
        return self.total > 0 and self.ascents(self.total) == 0

    @property
    def realised_fraction(self) -> float:
        """`fraction` rounded up to whole rows of a full micro-batch."""
        if self.rows == 0 or self.fraction == 0:
            return self.fraction
        return self.kept(self.rows) / self.rows

    def kept(self, rows: int) -> int:
        """Return how many of a micro-batch's rows the clean pass sees: the fraction, rounded up."""
        return min(rows, max(self.least, math.ceil(round(self.fraction * rows, 9))))

    @property
    def begin(self) -> int:
        """The first step with an ascent; a falling rho starts when the warm-up has ended.

        (As in arXiv 2401.12033, ViT-S/32 on ImageNet.)
        """
        return self.start if self.shape == "constant" else max(self.start, self.warmup)

    def share_at(self, step: int) -> float:
        """Return the fraction of rho at a step, in [0, 1]; 0 where no ascent is due.

        Args:
            step: Optimizer steps completed before it.
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
        """Return the number of ascents in a run's first `steps` optimizer steps."""
        if self.probability == 1.0:
            return max(0, math.ceil((steps - self.begin) / self.interval))
        return sum(self._is_due(step) for step in range(self.begin, steps, self.interval))

    def passes(self, steps: int) -> float:
        """Return the forward-backward passes over an effective batch in the first `steps` steps."""
        return steps + self.realised_fraction * self.ascents(steps)

    def _is_due(self, step: int) -> bool:
        since = step - self.begin
        return since >= 0 and since % self.interval == 0 and coin(self.seed, step, self.probability)


def coin(seed: int, step: int, probability: float) -> bool:
    """Draw whether a step ascends: the same result on every rank and after a resume.

    Args:
        seed: Seed of the run.
        step: Optimizer steps completed before it.
        probability: Probability of an ascent.
    """
    return probability == 1.0 or random.Random(f"{seed}-{step}").random() < probability


def within(schedule: AscentSchedule, max_overhead: float) -> AscentSchedule:
    """Choose interval and fraction such that all clean passes cost at most `max_overhead - 1` runs.

    Chosen are the smallest interval that affords an eighth of each micro-batch and two rows of it,
    and the largest fraction in whole rows at that interval. Where micro-batches cannot be split, it
    is the smallest interval that affords whole ones.

    Args:
        schedule: With the run's optimizer steps and the rows into which a micro-batch can be split.
        max_overhead: Passes of the run divided by those of the base optimizer's; above 1.

    Returns:
        The schedule; it has no ascent if even one costs more.
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
    """Return `ascent_start` in optimizer steps, read as `warmup_steps` is.

    Args:
        start: Below 1 a fraction of the run's steps, from 1 on a number of steps.
        total: Optimizer steps of the run.
    """
    return math.ceil(start * total) if start < 1 else int(start)
