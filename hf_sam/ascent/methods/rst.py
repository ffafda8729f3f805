"""RST: a coin decides whether a step ascends."""

from dataclasses import dataclass
from typing import ClassVar

from .method import Method, require


@dataclass(frozen=True)
class RST(Method):
    """Randomized sharpness-aware training (Zhao et al., arXiv 2203.09962), constant probability.

    The coin is a function of the run's seed and the step: all ranks see the same, and a resumed run
    sees those of an uninterrupted one.

    Cost: 1 + p forward-backward passes a step on average.
    """

    source: ClassVar[str] = "arXiv 2203.09962"

    p: float = 0.5  # probability of an ascent; 1 is SAM, 0 the base optimizer

    @property
    def probability(self) -> float:
        """The probability with which a step that is due ascends."""
        return self.p

    def require_valid(self) -> None:
        """Raise a ValueError unless p is in [0, 1]."""
        remedy = "1 is SAM, 0.5 costs half of its second pass"
        require(0 <= self.p <= 1, "`p` of rst", "from 0 to 1", self.p, remedy)
