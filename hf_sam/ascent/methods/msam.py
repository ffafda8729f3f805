"""MSAM: ascends along the base optimizer's momentum, without a clean pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .method import Memory, Method


@dataclass(frozen=True)
class MSAM(Method):
    """Momentum-SAM (Becker et al., arXiv 2401.12033, algorithm 1): epsilon = -rho v / ||v||.

    v is the momentum of torch's SGD (`momentum_buffer`) or of Adam and AdamW (`exp_avg`), of all
    parameters as one vector; the sign is the paper's. The first step is the base optimizer's. The
    official code leaves the weights perturbed between steps; here they are w outside of the
    training step. `loss` is that at w + epsilon, and no sharpness is logged.

    Cost: one forward-backward pass, and the memory of one copy of the trainable parameters.
    """

    has_clean_pass: ClassVar[bool] = False
    scope: ClassVar[str] = "global"
    source: ClassVar[str] = "arXiv 2401.12033"

    def require_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a ValueError unless it is torch's SGD with momentum, Adam or AdamW."""
        kinds = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
        if type(optimizer) not in kinds:
            raise ValueError(
                "msam must read the momentum of torch's SGD, Adam or AdamW, got "
                f"{type(optimizer).__name__}: set `optim=adamw_torch`, or `optim=sgd` with "
                "`optim_args=momentum=0.9`."
            )
        for group in optimizer.param_groups:
            if not group.get("momentum", group.get("betas", (0.0,))[0]):
                raise ValueError(
                    "msam must find a momentum, got none in "
                    f"{type(optimizer).__name__}: set `optim_args=momentum=0.9`, or `adam_beta1`."
                )

    def known_direction(
        self, params: Mapping[str, Tensor], state: Mapping[Any, Any], memory: Memory
    ) -> list[Tensor | None]:
        """Return -v."""
        states = [state.get(param, {}) for param in params.values()]
        momenta = [own.get("momentum_buffer", own.get("exp_avg")) for own in states]
        return [None if v is None else -v for v in momenta]
