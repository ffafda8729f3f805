"""The questions that SAM asks of the engine that trains a model."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..ascent.perturbation import (
    Saved,
    gradients_set_aside,
    perturbed,
    put_gradients,
    take_gradients,
)
from ..ascent.shards import local

Weights = Mapping[str, Tensor]  # what holds w, by name: parameters, or this rank's shards of them


class Engine(ABC):
    """How two passes are made under one engine: asked in the order of an optimizer step.

    The answers given here are those of an engine that leaves gradients in `p.grad` and weights in
    the parameters, which may be DTensors (`ascent/shards.py` counts every entry once).
    """

    default_scope: str | None = None  # of `ascent_scope`; None where the method may choose
    keeps_memory = True  # whether checkpoints can have what a method keeps between steps
    keeps_leftovers = True  # whether a window that is not stepped can be added to the next
    broadcasts_buffers = False  # whether a pass may begin from the buffers of another rank
    pass_dtype: torch.dtype | None = None  # of the weights in a pass, where it is another
    # What keeps rounding from taking a perturbation away.
    float32_remedy = (
        "load the model in float32 (`dtype=torch.float32`) and compute in bfloat16 by `bf16=True`"
    )

    @classmethod
    @abstractmethod
    def of(cls, model: nn.Module) -> Self | None:
        """Return the engine of a prepared model, or None if this is not its engine."""

    @abstractmethod
    def require_supported(
        self, params: Mapping[str, Tensor], *, scope: str | None, accumulation: int, ranks: int
    ) -> None:
        """Refuse, before the first step, what SAM would train wrongly.

        Args:
            params: All that may be trained, by name.
            scope: The `ascent_scope` that the user asked for, None for the default.
            accumulation: The number of micro-batches in a window.
            ranks: The number of processes.

        Raises:
            ValueError: Saying what cannot be had and what to use instead.
        """

    def optimized(self, optimizer: Any) -> list[Tensor]:
        """Return the parameters that the user gave the optimizer, as the engine has wrapped it."""
        return [param for group in optimizer.param_groups for param in group["params"]]

    def step(self) -> AbstractContextManager[None]:
        """Surround a training step: parameters hold w in it, and nothing of w + epsilon stays."""
        return nullcontext()

    def weights(self, trainable: Mapping[str, Tensor]) -> Weights:
        """Return what holds w of the trainable parameters, by the same names."""
        return trainable

    def held(self, params: Iterable[Tensor]) -> list[Tensor]:
        """Return what this rank holds of parameters, trained or not, between the passes."""
        return [local(param) for param in params]

    def before_clean_pass(self, weights: Weights, *, reduced: bool) -> None:
        """Get ready for a clean pass; what it begins from (buffers, draws) is remembered after.

        Args:
            weights: Of the trainable parameters.
            reduced: Whether the pass is to reduce its gradients over the ranks.
        """
        return

    @contextmanager
    def gradients_apart(
        self, weights: Weights, others: Iterable[Tensor], gathered: list[Tensor | None] | None
    ) -> Iterator[None]:
        """Keep the gradients of a clean pass apart from the descent gradient.

        Args:
            weights: Of the trainable parameters.
            others: Parameters that something else trains.
            gathered: What earlier clean passes of the window have gathered; the pass adds to it.

        Yields:
            Nothing. In the block, after the pass, `take_gradients` gives the sum.
        """
        with gradients_set_aside([*weights.values(), *others]):
            put_gradients(weights.values(), gathered)
            yield

    def take_gradients(self, weights: Weights) -> list[Tensor | None]:
        """Take off what clean passes have gathered, aligned with the weights."""
        return take_gradients(weights.values())

    def one_pass(self, accelerator: Accelerator, *, reduced: bool) -> AbstractContextManager[None]:
        """Surround a pass; `reduced` lets ranks add up their gradients where the Trainer would."""
        return nullcontext()

    def leaves(self, moved: list[Tensor], *, reduced: bool) -> list[Tensor] | None:
        """Return the ends of a pass's graph at parameters, or None if no other may be left out.

        Args:
            moved: The parameters whose gradients are used.
            reduced: Whether the pass reduces its gradients over the ranks.
        """
        return moved

    def loss_scale(self) -> Tensor | float:
        """Return what the engine itself multiplies a loss by before backward."""
        return 1.0

    def perturbed(
        self, weights: Weights, perturbation: Iterable[Tensor | None], *, saved: Saved
    ) -> AbstractContextManager[None]:
        """Move w to w + epsilon in the block, and put w back bit for bit; as `perturbed` does."""
        return perturbed(weights.values(), perturbation, saved=saved)

    def before_perturbed_passes(self) -> None:
        """Get ready for the passes at w + epsilon, which begin where the clean ones began."""
        return

    def descent_gradients(self, weights: Weights) -> AbstractContextManager[None]:
        """Have the descent gradient in `.grad` of the weights in the block, to be changed there."""
        return nullcontext()

    def give_up(self) -> None:
        """Drop the gradients of a window that is never finished, where the engine keeps them."""
        return

    def end_step(self) -> None:
        """Clip and step at the end of SAM's window, where the Trainer leaves that to the engine."""
        return
