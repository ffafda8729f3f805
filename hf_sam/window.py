"""The micro-batches of one optimizer step, remembered until their perturbation is known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .replay import RandomState


@dataclass(frozen=True)
class MicroBatch:
    """What a second pass needs to repeat the first."""

    inputs: Mapping[str, Any]
    num_items_in_batch: Tensor | int | None  # label items in the window, as the Trainer counts them
    draws: RandomState  # the generators before the clean pass


@dataclass
class Window:
    """One optimizer step's micro-batches on one rank, as far as they have come.

    The clean gradient is summed here and not in `p.grad`, which between the training steps of a
    window never holds anything but the gradient to descend along. So a window that is given up
    leaves nothing in the model.
    """

    scope: str  # what shares a perturbation: micro_batch, rank or global
    length: int  # training steps in all
    begun_at: int  # the Trainer's global step
    undo_stats: Callable[[], None]  # puts the model's buffers back as before the window
    steps: int = 0  # training steps made
    is_complete: bool = False  # the last micro-batch has had its clean pass
    group: list[MicroBatch] = field(default_factory=list)  # they share the next perturbation
    clean_losses: list[Tensor] = field(default_factory=list)  # () each, aligned with `group`
    clean_grad: list[Tensor | None] | None = None  # the group's, aligned with the parameters

    def take_group(self) -> tuple[list[MicroBatch], list[Tensor], list[Tensor | None]]:
        """Return micro-batches, clean losses and clean gradient of the group; the next is empty."""
        assert self.clean_grad is not None
        group = self.group, self.clean_losses, self.clean_grad
        self.group, self.clean_losses, self.clean_grad = [], [], None
        return group
