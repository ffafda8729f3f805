"""VaSSO: smooths the ascent direction over the steps."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..vectors import combine, gradient_norm
from .method import Memory, Method, recall, remember, require


@dataclass(frozen=True)
class VaSSO(Method):
    """Variance-suppressed SAM (Li and Giannakis, NeurIPS 2023, arXiv 2309.15639; 2509.02433).

    The ascent direction is d_t = (1 - theta) d_(t-1) + theta g_t, so that it follows the noise of
    one batch, or of the part of it that `ascent_fraction` leaves, by a share theta only. d starts
    at each parameter's first g, as in the official code (at the first of all, if that overflowed),
    and is updated at the steps that ascend.

    Cost: two forward-backward passes where it ascends, and one copy of the gradient.
    """

    theta: float = 0.9  # share of the current gradient, the official code's default; 1 is SAM

    scope: ClassVar[str] = "global"
    has_memory: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv 2309.15639"

    def require_valid(self) -> None:
        """Raise a ValueError unless theta is in (0, 1]."""
        name, is_right = "`theta` of vasso", 0 < self.theta <= 1
        require(is_right, name, "above 0 and at most 1", self.theta, "the authors' default is 0.9")

    def direction(
        self,
        names: list[str],
        clean_grad: list[Tensor | None],
        scale: Tensor | float,
        memory: Memory,
    ) -> list[Tensor | None]:
        """Update d and return a copy of it, without the loss scale."""
        if self.theta == 1:
            return clean_grad
        gradient = combine(clean_grad, 1.0 / scale, [None] * len(names), 0.0)
        known = zip(recall(memory, names), gradient, strict=True)
        before = [g.clone() if d is None and g is not None else d for d, g in known]
        norm = gradient_norm(before)  # 0 after gradients that have overflowed only
        share = torch.where(norm > 0, torch.full_like(norm, self.theta), torch.ones_like(norm))
        smoothed = combine(gradient, share, before, 1.0 - share)
        remember(memory, names, smoothed)
        return smoothed
