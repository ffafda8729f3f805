"""Counters of what a model is trained on: passes, and examples."""

from typing import Any

from torch import nn


class CountPasses:
    """Counts the training passes of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.passes = 0
        model.register_forward_hook(self)

    def __call__(self, model: nn.Module, *args: Any) -> None:
        self.passes += model.training


class CountExamples:
    """Counts the examples that a model was trained on, each pass anew."""

    def __init__(self, model: nn.Module) -> None:
        self.examples = 0
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.examples += len(kwargs["labels"])
