"""What a method may do otherwise than SAM, at the points where the trainer asks it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..perturbation import put_gradients, take_gradients
from ..shards import local
from ..vectors import NORM_FLOOR, Vector, as_dense, gradient_norm

# What a method keeps from one step to the next: by parameter name, of the parameter's shape. It is
# saved in the checkpoint, in a file of its own.
Memory = dict[str, Tensor]


@dataclass(frozen=True)
class Method:
    """SAM itself (arXiv 2010.01412), and what each other method overrides.

    Cost: two forward-backward passes where it ascends.
    """

    # Whether an ascent takes a clean pass; without one its direction must be known beforehand.
    has_clean_pass: ClassVar[bool] = True
    # What shares a perturbation where the user does not say.
    scope: ClassVar[str] = "micro_batch"
    # Whether `finish` needs the clean gradient beside the perturbed one: a copy of the gradient.
    keeps_clean_grad: ClassVar[bool] = False
    # Whether `finish` has something to do at the steps without an ascent too.
    acts_at_every_step: ClassVar[bool] = False
    # Whether it keeps something from step to step.
    has_memory: ClassVar[bool] = False
    # What a model card cites.
    source: ClassVar[str] = "arXiv 2010.01412"
    # Whether its rule is written for the Euclidean ball only.
    is_euclidean: ClassVar[bool] = False

    @property
    def changes_gradient(self) -> bool:
        """Whether `finish` reads or changes the descent gradient."""
        return self.keeps_clean_grad or self.acts_at_every_step

    @property
    def probability(self) -> float:
        """The probability with which a step that is due ascends."""
        return 1.0

    def require_valid(self) -> None:
        """Raise a ValueError for the first argument that breaks its rule."""

    def require_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a ValueError if the base optimizer lacks what the method reads from it."""

    def known_direction(
        self, params: Mapping[str, Tensor], state: Mapping[Any, Any], memory: Memory
    ) -> list[Tensor | None]:
        """Return the direction of an ascent without a clean pass; all None where there is none.

        Args:
            params: The trainable parameters by name.
            state: The base optimizer's, by parameter, to be read only.
            memory: What the method has kept.
        """
        raise AssertionError("only called where has_clean_pass is False")

    def direction(
        self,
        names: list[str],
        clean_grad: list[Tensor | None],
        scale: Tensor | float,
        memory: Memory,
    ) -> list[Tensor | None]:
        """Return the direction of the ascent, in the memory of the clean gradient.

        Args:
            names: Of the parameters.
            clean_grad: Aligned with `names`. Consumed.
            scale: What the mean loss was multiplied by before the backward pass.
            memory: What the method keeps; changed.
        """
        return clean_grad

    def share_of_rho(self, rho: float, share: float, grad_norm: Tensor) -> Tensor | None:
        """Return the share of rho that is used, of shape (); None for all of it.

        Args:
            rho: The radius at this step.
            share: What `rho_schedule` has left of the radius.
            grad_norm: L2 norm of the clean gradient of the mean loss, of shape ().
        """
        return None

    def descent(self, perturbed_grad: Vector, clean_grad: Vector) -> Vector:
        """Return the gradient to descend along, where `keeps_clean_grad`.

        Args:
            perturbed_grad: Of the effective batch, one tensor for each parameter. Consumed.
            clean_grad: Likewise, aligned with it.
        """
        return perturbed_grad

    def finish(
        self, params: Mapping[str, Tensor], clean_grad: Vector | None, memory: Memory
    ) -> None:
        """Change or remember the descent gradient in `p.grad`, before it is clipped and applied.

        Args:
            params: The trainable parameters by name.
            clean_grad: Of the effective batch, aligned with `params`, where `keeps_clean_grad` and
                the step has ascended; else None.
            memory: What the method keeps; changed.
        """
        if clean_grad is not None:
            perturbed_grad = take_gradients(params.values())
            put_gradients(params.values(), self.descent(perturbed_grad, clean_grad))


def require(is_right: bool, argument: str, rule: str, value: float, remedy: str) -> None:
    """Raise a ValueError unless a method's argument is right.

    Args:
        is_right: Whether it is.
        argument: `name` of method.
        rule: What it must be.
        value: What it is.
        remedy: What to set instead.

    Raises:
        ValueError: Saying rule, value and remedy.
    """
    if not is_right:
        raise ValueError(f"{argument} must be {rule}, got {value!r}: {remedy}.")


def remember(memory: Memory, names: list[str], vector: Vector, *, unit: bool = False) -> None:
    """Keep a copy of a vector, unless it is not finite: then what was kept before stays.

    An overflow under a gradient scaler must not spoil the steps after it.

    Args:
        memory: Changed.
        names: Of the parameters.
        vector: Aligned with `names`.
        unit: Whether to divide it by its L2 norm, which takes the loss scale out of it.
    """
    norm = gradient_norm(vector)
    is_finite = torch.isfinite(norm)
    factor = 1.0 / norm.clamp(min=NORM_FLOOR) if unit else torch.ones_like(norm)
    for name, x in zip(names, vector, strict=True):
        if x is not None and name not in memory:
            memory[name] = torch.zeros_like(as_dense(x))
        if name in memory:
            kept = local(memory[name])
            new = torch.zeros_like(kept) if x is None else local(as_dense(x)) * factor.to(x.device)
            kept.copy_(torch.where(is_finite.to(kept.device), new, kept))


def recall(memory: Memory, names: Iterable[str]) -> list[Tensor | None]:
    """Return what is kept, aligned with `names`; None where nothing is."""
    return [memory.get(name) for name in names]
