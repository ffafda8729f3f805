"""DeepSpeed's own activation checkpointing, called by a model in its forward pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cases import CLASSES, FEATURES, HIDDEN
from deepspeed_cpu import whole_state
from deepspeed_runs import trainer_of
from torch import Tensor, nn

# Of `deepspeed.checkpointing.configure`. Not here: `cpu_checkpointing` of whole activations, with
# which DeepSpeed empties on a CPU what it has yet to compute with, under the plain Trainer too.
PARTS = {
    "partition_activations": True,
    "cpu_checkpointing": True,
    "contiguous_memory_optimization": True,
    "number_checkpoints": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "by default": {},
    "in parts": {"deepspeed_config": {"train_batch_size": 2, "activation_checkpointing": PARTS}},
}


class Block(nn.Module):
    """A layer with dropout, which counts how often it is computed in training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout, self.calls = nn.Linear(HIDDEN, HIDDEN), nn.Dropout(0.3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.dropout(torch.tanh(self.linear(x)))


class Checkpointed(nn.Module):
    """Two blocks that `call` computes, between two layers."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.blocks, self.call = nn.ModuleList([Block(), Block()]), call

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x = self.first(x)
        for block in self.blocks:
            x = self.call(block, x)
        return {"loss": F.cross_entropy(self.last(x), labels)}


def checkpointed_differs(folder: Path, engine: dict[str, Any], kind: str) -> dict[str, Any]:
    """The largest difference to training without it, by the largest weight; the calls of both."""
    import deepspeed

    states, calls = [], []
    for call in (lambda block, x: block(x), deepspeed.checkpointing.checkpoint):
        model = Checkpointed(call)
        trainer = trainer_of(folder, model, engine, max_steps=4)
        deepspeed.checkpointing.configure(None, **KINDS[kind])
        trainer.train()
        states.append(whole_state(trainer))
        calls.append([block.calls for block in model.blocks])
    largest = max(float(x.abs().max()) for x in states[0].values())
    errors = [float((states[1][name] - x).abs().max()) for name, x in states[0].items()]
    return {"error": max(errors) / largest, "calls": calls}
