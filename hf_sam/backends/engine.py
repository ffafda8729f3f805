"""The questions that SAM asks of the engine that trains a model."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Self

from accelerate import Accelerator
from torch import Tensor, nn


class Engine(ABC):
    """How two passes are made under one engine: asked in the order of an optimizer step.

    Gradients are set aside, weights moved and put back on the parameters themselves, which are this
    rank's shards where the engine shards them (`ascent/shards.py` counts every entry once).
    """

    default_scope: str | None = None  # of `ascent_scope`; None where the method may choose
    broadcasts_buffers = False  # whether a pass may begin from the buffers of another rank

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

    @abstractmethod
    def step(self) -> AbstractContextManager[None]:
        """Surround a training step: parameters hold w in it, and nothing of w + epsilon stays."""

    @abstractmethod
    def before_clean_pass(self, params: Iterable[Tensor], *, reduced: bool) -> None:
        """Get the trainable parameters ready for a pass, whose gradients are then taken off them.

        What a pass begins from (buffers, random draws) is remembered after this.

        Args:
            params: The trainable ones.
            reduced: Whether the pass is to reduce its gradients over the ranks.
        """

    @abstractmethod
    def before_perturbed_passes(self) -> None:
        """Get ready for the passes at w + epsilon, which begin where the clean ones began."""

    @abstractmethod
    def one_pass(self, accelerator: Accelerator, *, reduced: bool) -> AbstractContextManager[None]:
        """Surround a pass; `reduced` lets ranks add up their gradients where the Trainer would."""
