"""FriendlySAM: removes the gradient's moving average from the ascent direction."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..vectors import combine
from .method import Memory, Method, recall, remember, require


@dataclass(frozen=True)
class FriendlySAM(Method):
    """Friendly SAM (Li et al., arXiv 2403.12350, algorithm 1).

    m, a moving average over the steps, estimates the full-batch gradient; the ascent direction is
    g - sigma m. m starts at 0 and is updated by the current g first, as in the paper. The official
    code subtracts m before the update and starts it at the first g: for sigma 1 that is the paper's
    direction apart from the start. m is updated at the steps that ascend.

    Cost: two forward-backward passes where it ascends, and one copy of the gradient.
    """

    sigma: float = 1.0  # factor of the m that is subtracted; 0 is SAM
    decay: float = 0.9  # of m, the paper's lambda

    scope: ClassVar[str] = "global"
    has_memory: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv 2403.12350"

    def require_valid(self) -> None:
        """Raise a ValueError unless sigma is finite and decay in (0, 1)."""
        name, is_right = "`sigma` of friendly_sam", 0 <= self.sigma < math.inf
        require(is_right, name, ">= 0", self.sigma, "0 is SAM, the paper uses 1")
        name, is_right = "`decay` of friendly_sam", 0 < self.decay < 1
        require(is_right, name, "above 0 and below 1", self.decay, "the paper uses 0.9")

    def direction(
        self,
        names: list[str],
        clean_grad: list[Tensor | None],
        scale: Tensor | float,
        memory: Memory,
    ) -> list[Tensor | None]:
        """Update m and return g - sigma m, both without the loss scale."""
        if self.sigma == 0:
            return clean_grad
        gradient = combine(clean_grad, 1.0 / scale, [None] * len(names), 0.0)
        average = recall(memory, names)
        kept = [None if m is None else m.clone() for m in average]
        remember(memory, names, combine(kept, self.decay, gradient, 1.0 - self.decay))
        return combine(gradient, 1.0, recall(memory, names), -self.sigma)
