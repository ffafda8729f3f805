"""S2-SAM: ascends along the previous step's gradient, without a clean pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..vectors import Vector
from .method import Memory, Method, recall, remember


@dataclass(frozen=True)
class S2SAM(Method):
    """Single-step SAM (Ji et al., NeurIPS 2024): epsilon_t = rho g_(t-1) / ||g_(t-1)||.

    g_(t-1) is the descent gradient of the last step, before clipping: after an ascent, the gradient
    at w + epsilon. The first step is the base optimizer's. `loss` is that at w + epsilon, and no
    sharpness is logged.

    Cost: one forward-backward pass, and one stored copy of the gradient.
    """

    has_clean_pass: ClassVar[bool] = False
    scope: ClassVar[str] = "global"
    acts_at_every_step: ClassVar[bool] = True
    has_memory: ClassVar[bool] = True
    source: ClassVar[str] = "Ji et al., NeurIPS 2024"

    def known_direction(
        self, params: Mapping[str, Tensor], state: Mapping[Any, Any], memory: Memory
    ) -> list[Tensor | None]:
        """Return a copy of the last step's gradient."""
        return [None if kept is None else kept.clone() for kept in recall(memory, params)]

    def finish(
        self, params: Mapping[str, Tensor], clean_grad: Vector | None, memory: Memory
    ) -> None:
        """Store the gradient for the next step."""
        remember(memory, list(params), [param.grad for param in params.values()])
