"""RST: ascends at randomly drawn optimizer steps."""

from dataclasses import dataclass
from typing import ClassVar

from .method import Method, require


@dataclass(frozen=True)
class RST(Method):
    """Randomized sharpness-aware training (Zhao et al., arXiv 2203.09962), constant probability.

    The draw depends on the run's seed and the step only: all ranks get the same result, and a
    resumed run the results of an uninterrupted one.

    Cost: 1 + p forward-backward passes a step on average.
    """

    source: ClassVar[str] = "arXiv 2203.09962"

    p: float = 0.5  # probability of an ascent; 1 is SAM, 0 the base optimizer

    @property
    def probability(self) -> float:
        """Probability of an ascent at a step where one is due."""
        return self.p

    def require_valid(self) -> None:
        """Raise a ValueError unless p is in [0, 1]."""
        remedy = "1 is SAM, 0.5 costs half of its second pass"
        require(0 <= self.p <= 1, "`p` of rst", "from 0 to 1", self.p, remedy)
