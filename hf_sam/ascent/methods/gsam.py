"""GSAM: subtracts from the perturbed gradient the clean gradient's component orthogonal to it."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..vectors import NORM_FLOOR, Vector, combine, inner_product
from .method import Method, require


@dataclass(frozen=True)
class GSAM(Method):
    """Surrogate gap minimisation (Zhuang et al., arXiv 2203.08065, algorithm 1).

    Cost: two forward-backward passes where it ascends, and one copy of the gradient. The paper
    lowers rho with the learning rate: `rho_schedule`.
    """

    alpha: float = 0.4  # factor of the orthogonal component; 0 is SAM

    scope: ClassVar[str] = "global"
    keeps_clean_grad: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv 2203.08065"

    def require_valid(self) -> None:
        """Raise a ValueError unless alpha is finite and not negative."""
        is_right = 0 <= self.alpha < math.inf
        remedy = "0 is SAM, the paper uses 0.1 to 0.4"
        require(is_right, "`alpha` of gsam", ">= 0", self.alpha, remedy)

    def descent(self, perturbed_grad: Vector, clean_grad: Vector) -> list[Tensor | None]:
        """Return GSAM's gradient."""
        return gsam_gradient(perturbed_grad, clean_grad, alpha=self.alpha)


def gsam_gradient(
    perturbed_grad: Vector, clean_grad: Vector, *, alpha: float
) -> list[Tensor | None]:
    """Return g_p - alpha (g - (<g, g_p> / ||g_p||^2) g_p), reusing the memory of g_p.

    This is the formula of the paper and of the official code. That code applies it on each device,
    before averaging; here both gradients are those of the effective batch.

    Args:
        perturbed_grad: g_p, one tensor for each parameter, or None. Consumed.
        clean_grad: g, aligned with it.
        alpha: Factor of the orthogonal component.
    """
    square = inner_product(perturbed_grad, perturbed_grad).clamp(min=NORM_FLOOR**2)
    parallel = inner_product(clean_grad, perturbed_grad) / square
    return combine(perturbed_grad, 1.0 + alpha * parallel, clean_grad, -alpha)
