"""The interface of a method: where the trainer lets it differ from SAM."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..perturbation import put_gradients, take_gradients
from ..shards import local
from ..vectors import NORM_FLOOR, Vector, as_dense, gradient_norm

# The state that a method keeps between steps: by parameter name, of the parameter's shape. Saved in
# the checkpoint, in a file of its own.
Memory = dict[str, Tensor]


@dataclass(frozen=True)
class Method:
    """SAM (arXiv 2010.01412), and the base class of the other methods.

    Cost: two forward-backward passes where it ascends.
    """

    # Whether an ascent makes a clean pass; without one its direction must be known beforehand.
    has_clean_pass: ClassVar[bool] = True
    # The `ascent_scope` unless the user sets one.
    scope: ClassVar[str] = "micro_batch"
    # Whether `finish` needs the clean gradient too, which costs a copy of the gradient.
    keeps_clean_grad: ClassVar[bool] = False
    # Whether `finish` also acts at steps without an ascent.
    acts_at_every_step: ClassVar[bool] = False
    # Whether it keeps state between steps.
    has_memory: ClassVar[bool] = False
    # The reference on a model card.
    source: ClassVar[str] = "arXiv 2010.01412"
    # Whether its formula holds for the L2 norm only.
    is_euclidean: ClassVar[bool] = False

    @property
    def changes_gradient(self) -> bool:
        """Whether `finish` reads or changes the descent gradient."""
        return self.keeps_clean_grad or self.acts_at_every_step

    @property
    def probability(self) -> float:
        """Probability of an ascent at a step where one is due."""
        return 1.0

    def require_valid(self) -> None:
        """Raise a ValueError for the first invalid argument."""

    def require_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a ValueError if the base optimizer lacks the state that the method reads."""

    def known_direction(
        self, params: Mapping[str, Tensor], state: Mapping[Any, Any], memory: Memory
    ) -> list[Tensor | None]:
        """Return the ascent direction of a method without a clean pass; all None if none is known.

        Args:
            params: The trainable parameters by name.
            state: The base optimizer's state, by parameter; not to be changed.
            memory: The method's state.
        """
        raise AssertionError("only called where has_clean_pass is False")

    def direction(
        self,
        names: list[str],
        clean_grad: list[Tensor | None],
        scale: Tensor | float,
        memory: Memory,
    ) -> list[Tensor | None]:
        """Return the direction of the ascent, reusing the memory of the clean gradient.

        Args:
            names: Names of the parameters.
            clean_grad: Aligned with `names`. Consumed.
            scale: Factor by which the mean loss was multiplied before the backward pass.
            memory: The method's state; updated.
        """
        return clean_grad

    def share_of_rho(self, rho: float, share: float, grad_norm: Tensor) -> Tensor | None:
        """Return the fraction of rho to use, of shape (); None for all of it.

        Args:
            rho: The radius at this step.
            share: Radius at this step divided by the initial one (`rho_schedule`).
            grad_norm: L2 norm of the clean gradient of the mean loss, of shape ().
        """
        return None

    def descent(self, perturbed_grad: Vector, clean_grad: Vector) -> Vector:
        """Return the gradient for the descent, of a method that keeps the clean gradient.

        Args:
            perturbed_grad: Of the effective batch, one tensor for each parameter. Consumed.
            clean_grad: Likewise, aligned with it.
        """
        return perturbed_grad

    def finish(
        self, params: Mapping[str, Tensor], clean_grad: Vector | None, memory: Memory
    ) -> None:
        """Change or store the descent gradient in `p.grad`, before it is clipped and applied.

        Args:
            params: The trainable parameters by name.
            clean_grad: Of the effective batch, aligned with `params`, if `keeps_clean_grad` and the
                step has ascended; else None.
            memory: The method's state; updated.
        """
        if clean_grad is not None:
            perturbed_grad = take_gradients(params.values())
            put_gradients(params.values(), self.descent(perturbed_grad, clean_grad))


def require(is_right: bool, argument: str, rule: str, value: float, remedy: str) -> None:
    """Raise a ValueError unless a method's argument is valid.

    Args:
        is_right: Whether it is valid.
        argument: Its name and method, as "`alpha` of gsam".
        rule: The valid values.
        value: The given value.
        remedy: What to set instead.

    Raises:
        ValueError: With rule, value and remedy.
    """
    if not is_right:
        raise ValueError(f"{argument} must be {rule}, got {value!r}: {remedy}.")


def remember(memory: Memory, names: list[str], vector: Vector, *, unit: bool = False) -> None:
    """Store a copy of a vector in a method's state; if it is not finite, keep the old values.

    So an overflow under a gradient scaler does not corrupt the following steps.

    Args:
        memory: The method's state; updated.
        names: Names of the parameters.
        vector: Aligned with `names`.
        unit: Whether to divide it by its L2 norm, which removes the loss scale.
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
    """Return the stored tensors, aligned with `names`; None where there is none."""
    return [memory.get(name) for name in names]
