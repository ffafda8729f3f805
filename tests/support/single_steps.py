"""One micro-batch through a Trainer, on a model that fails where it is told to."""

from typing import Any

import torch
from cases import examples
from torch import Tensor, nn
from transformers import Trainer

Batch = dict[str, Tensor]


def batch(size: int = 8, dtype: torch.dtype = torch.float32) -> Batch:
    rows = examples(dtype, size)
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def buffers(model: nn.Module) -> list[Tensor]:
    return [b.clone() for b in model.buffers()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def step(trainer: Trainer, inputs: Batch) -> None:
    """One micro-batch, of a window as long as the settings say."""
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.training_step(trainer.model, inputs)


class FailsLater(nn.Module):
    """Passes its input on, and does `what` from the given call on."""

    def __init__(self, model: nn.Module, call: int, what: Any) -> None:
        super().__init__()
        self.model, self.call, self.what, self.calls = model, call, what, 0

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        self.calls += 1
        if self.calls >= self.call:
            x = self.what(self.model, x)
        return self.model(x, labels)


def fail_with(error: type[BaseException]) -> Any:
    def fail(model: nn.Module, x: Tensor) -> Tensor:
        model.body[:2](x)  # moves the running statistics, if there are any
        raise error

    return fail


def overflow(model: nn.Module, x: Tensor) -> Tensor:
    return x * float("inf")
