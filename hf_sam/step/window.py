"""The window: one optimizer step's micro-batches, kept until their perturbation is known."""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.utils import logging

from ..ascent.vectors import as_dense
from .buffers import Buffers, Snapshot
from .parts import Start

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class MicroBatch:
    """What a second pass needs to repeat the first."""

    inputs: Mapping[str, Any]
    num_items_in_batch: Tensor | int | None  # label items in the window, as the Trainer counts them


def last_alone(micro_batches: Sequence[Any]) -> Any:
    """Return the last micro-batch, which marks the window's end; None if it occurs twice."""
    last = micro_batches[-1] if micro_batches else None
    return last if sum(other is last for other in micro_batches) == 1 else None


@dataclass
class Window:
    """The micro-batches of one optimizer step on one rank, added as they arrive.

    The clean gradient is summed here, as `p.grad` holds only the gradient for the descent between
    the training steps of a window. So an abandoned window leaves nothing in the model.
    """

    scope: str  # what shares a perturbation: micro_batch, rank or global
    length: int  # training steps in all
    begun_at: int  # the Trainer's global step
    buffers: Buffers
    names: list[str]  # of the trainable parameters, which all gradients here are aligned with
    steps: int = 0  # training steps made
    is_complete: bool = False  # the last micro-batch has had its clean pass
    group: list[MicroBatch] = field(default_factory=list)  # they share the next perturbation
    starts: list[Start] = field(default_factory=list)  # of their passes, aligned with `group`
    clean_losses: list[Tensor] = field(default_factory=list)  # () each, likewise
    clean_grad: list[Tensor | None] | None = None  # the group's, aligned with the parameters
    leftovers: list[Tensor | None] | None = None  # that lay in `p.grad` when the window began
    kept_clean_grad: list[Tensor | None] | None = None  # a copy, for methods whose descent uses it
    before: Snapshot = field(init=False)  # the buffers at its beginning

    def __post_init__(self) -> None:
        """Take a snapshot of the buffers."""
        self.before = self.buffers.snapshot()

    def aligned(self, names: list[str]) -> Self:
        """Return the window, its gradients aligned with what is trainable now.

        A callback may freeze and unfreeze parameters between the window's training steps.
        """
        if names != self.names:
            self.clean_grad = self._realigned(self.clean_grad, names)
            self.leftovers = self._realigned(self.leftovers, names)
            self.kept_clean_grad = self._realigned(self.kept_clean_grad, names)
            self.names = names
        return self

    def _realigned(
        self, gradients: list[Tensor | None] | None, names: list[str]
    ) -> list[Tensor | None] | None:
        if gradients is None:
            return None
        known = dict(zip(self.names, gradients, strict=True))
        return [known.get(name) for name in names]

    def warn_if_lost(self, step: int) -> None:
        """Warn if the optimizer has reached `step` although this window is not complete."""
        if self.group and self.begun_at < step:
            logger.warning(
                f"Optimizer step {self.begun_at} had no gradient: its last micro-batch was "
                f"skipped, for which `ascent_scope={self.scope}` waits. In micro_batch scope, "
                "where the method has it, training steps may be skipped."
            )

    def add(self, micro_batch: MicroBatch, start: Start, clean_loss: Tensor) -> None:
        """Add a micro-batch to the group, after its clean pass."""
        self.group.append(micro_batch)
        self.starts.append(start)
        self.clean_losses.append(clean_loss)

    def count(self, *, is_last: bool) -> None:
        """Count a training step; `is_last` if it is known to be the window's last."""
        self.steps += 1
        self.is_complete = self.steps == self.length or is_last

    @contextmanager
    def undone_if_it_fails(self) -> Iterator[None]:
        """Context manager that restores the buffers from before the window if the block fails.

        That includes Ctrl-C. If training continues, so does the window, with the gradients that
        the block has made until then, as in the plain Trainer.
        """
        try:
            yield
        except BaseException:
            self.buffers.put_back(self.before)
            raise

    def add_leftovers(
        self, params: Mapping[str, Tensor], outside: Container[str], accelerator: Accelerator
    ) -> None:
        """Add the gradients that an unfinished earlier window left, averaged over the ranks.

        Args:
            params: The parameters that `leftovers` belongs to, by name.
            outside: Names of those that each rank trains for itself.
            accelerator: Averages the others' gradients, as a backward pass would have.
        """
        pairs = zip(params.items(), self.leftovers or [], strict=False)
        for (name, param), left in [(item, left) for item, left in pairs if left is not None]:
            is_own = name in outside or isinstance(left, DTensor)
            mean = left if is_own else accelerator.reduce(left, "mean")
            param.grad = mean if param.grad is None else param.grad + mean

    def average_over_ranks(
        self, params: Mapping[str, Tensor], names: Container[str], accelerator: Accelerator
    ) -> None:
        """Average, in place, the clean gradients that the model's wrapper does not average.

        Args:
            params: The parameters that `clean_grad` belongs to, by name.
            names: Names of those to average.
            accelerator: Averages them, as a backward pass would have.
        """
        assert self.clean_grad is not None
        for i, (name, param) in enumerate(params.items()):
            if name in names and accelerator.num_processes > 1:
                own = self.clean_grad[i]
                dense = torch.zeros_like(param) if own is None else as_dense(own)
                self.clean_grad[i] = accelerator.reduce(dense, "mean")

    def take_group(
        self,
    ) -> tuple[list[tuple[MicroBatch, Start]], list[Tensor], list[Tensor | None]]:
        """Return and clear the group's micro-batches, clean losses and clean gradient."""
        assert self.clean_grad is not None
        pairs = list(zip(self.group, self.starts, strict=True))
        taken = pairs, self.clean_losses, self.clean_grad
        self.group, self.starts, self.clean_losses, self.clean_grad = [], [], [], None
        return taken
