"""LookSAM: reuses the effect of the last ascent at the steps between two ascents."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..perturbation import put_gradients, take_gradients
from ..vectors import NORM_FLOOR, Vector, combine, gradient_norm, inner_product
from .method import Memory, Method, recall, remember, require


@dataclass(frozen=True)
class LookSAM(Method):
    """LookSAM (Liu et al., arXiv 2203.02714, algorithm 1) on the global norm.

    Its k is `ascent_interval`. At an ascent it stores g_v, the component of the perturbed gradient
    orthogonal to the clean one; at the steps between, it adds g_v, scaled to that step's gradient.
    (LookLayerSAM, which scales each layer by its own norms, is not implemented.) A parameter with
    an entry in g_v gets a gradient between ascents even if the batch does not use it.

    Cost: 1 + 1/k forward-backward passes a step; one copy of the gradient at an ascent, and one
    that is stored.
    """

    alpha: float = 0.1  # factor of g_v; 0 is SAM at every k-th step. The paper uses 0.7

    scope: ClassVar[str] = "global"
    keeps_clean_grad: ClassVar[bool] = True
    acts_at_every_step: ClassVar[bool] = True
    has_memory: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv 2203.02714"

    def require_valid(self) -> None:
        """Raise a ValueError unless alpha is finite and not negative."""
        is_right = 0 <= self.alpha < math.inf
        remedy = "0.1 transfers between tasks, the paper uses 0.7"
        require(is_right, "`alpha` of looksam", ">= 0", self.alpha, remedy)

    def finish(
        self, params: Mapping[str, Tensor], clean_grad: Vector | None, memory: Memory
    ) -> None:
        """Store g_v after an ascent; add it at the steps between."""
        names = list(params)
        if clean_grad is not None:
            perturbed_grad = [param.grad for param in params.values()]
            remember(memory, names, orthogonal_part(clean_grad, perturbed_grad), unit=True)
        elif memory:
            gradient = take_gradients(params.values())
            kept = recall(memory, names)
            put_gradients(params.values(), looksam_gradient(gradient, kept, alpha=self.alpha))


def orthogonal_part(clean_grad: Vector, perturbed_grad: Vector) -> list[Tensor | None]:
    """Return g_v = g_s - (<g_s, g> / ||g||^2) g, reusing the memory of g.

    Args:
        clean_grad: g, one tensor for each parameter, or None. Consumed.
        perturbed_grad: g_s, aligned with it.
    """
    square = inner_product(clean_grad, clean_grad).clamp(min=NORM_FLOOR**2)
    parallel = inner_product(perturbed_grad, clean_grad) / square
    return combine(clean_grad, -parallel, perturbed_grad, 1.0)


def looksam_gradient(gradient: Vector, unit: Vector, *, alpha: float) -> list[Tensor | None]:
    """Return g + alpha ||g|| g_v / ||g_v||, reusing the memory of g.

    Args:
        gradient: g, one tensor for each parameter, or None. Consumed.
        unit: g_v / ||g_v||, aligned with it.
        alpha: Factor of g_v, relative to ||g||.
    """
    return combine(gradient, 1.0, unit, alpha * gradient_norm(gradient))
