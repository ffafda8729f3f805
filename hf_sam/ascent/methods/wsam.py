"""WSAM: adds the sharpness to the loss with a weight of its own."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..vectors import Vector, combine
from .method import Method, require


@dataclass(frozen=True)
class WSAM(Method):
    """Weighted SAM (Yue et al., arXiv 2305.15817) in its coupled form.

    The loss is L + gamma / (1 - gamma) times the sharpness, and the base optimizer applies its
    gradient. The paper's decoupled form, in which the sharpness bypasses the base optimizer, would
    change that optimizer and is not implemented.

    Cost: two forward-backward passes where it ascends, and one copy of the gradient.
    """

    gamma: float = 0.9  # weight: 0 is the base optimizer, 0.5 SAM

    scope: ClassVar[str] = "global"
    keeps_clean_grad: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv 2305.15817"

    def require_valid(self) -> None:
        """Raise a ValueError unless gamma is in [0, 1)."""
        is_right = 0 <= self.gamma < 1
        remedy = "0.5 is SAM, the paper uses 0.5 to 0.98"
        require(is_right, "`gamma` of wsam", ">= 0 and below 1", self.gamma, remedy)

    def descent(self, perturbed_grad: Vector, clean_grad: Vector) -> list[Tensor | None]:
        """Return WSAM's gradient."""
        return wsam_gradient(perturbed_grad, clean_grad, gamma=self.gamma)


def wsam_gradient(
    perturbed_grad: Vector, clean_grad: Vector, *, gamma: float
) -> list[Tensor | None]:
    """Return a g_p + (1 - a) g with a = gamma / (1 - gamma), reusing the memory of g_p.

    Args:
        perturbed_grad: g_p, one tensor for each parameter, or None. Consumed.
        clean_grad: g, aligned with it.
        gamma: Weight of the sharpness, in [0, 1).
    """
    weight = gamma / (1.0 - gamma)
    return combine(perturbed_grad, weight, clean_grad, 1.0 - weight)
