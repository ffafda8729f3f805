"""Gradients that overflow in a pass of one's choice, under a gradient scaler on any device."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import build, make_trainer
from observers import fingerprint
from torch import Tensor, nn
from torch.amp import GradScaler
from transformers import Trainer

SCALE = 2.0**10


class Overflows(nn.Module):
    """Multiplies its loss, and so every gradient, by inf in the given forward passes.

    Refuses weights that are nan, as networks do that check their boxes or probabilities.
    """

    def __init__(self, calls: tuple[int, ...], model: str = "batch_norm") -> None:
        super().__init__()
        self.model, self.at, self.calls = build(model, torch.float32), calls, 0

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += self.training
        assert all(param.isfinite().all() for param in self.parameters())
        out = self.model(x, labels)
        if self.calls in self.at:
            out["loss"] = out["loss"] * float("inf")
        return out


def scaled(model: nn.Module, folder: Path, **settings: Any) -> Trainer:
    """A trainer as under fp16, also on the CPU: its accelerator has a gradient scaler."""
    trainer = make_trainer(
        model,
        folder,
        dtype=torch.float32,
        optim="adamw_torch",
        learning_rate=0.01,
        **{"max_steps": 1, **settings},
    )
    trainer.accelerator.scaler = GradScaler(trainer.args.device.type, init_scale=SCALE)
    return trainer


def overflow_on_last_rank(scope: str, folder: Path, calls: tuple[int, ...]) -> list[str]:
    """One rank's gradient is inf: every rank skips the step; name what is not as it must be."""
    last = dist.get_rank() == dist.get_world_size() - 1
    model = Overflows(calls if last else ())
    before = fingerprint(model, "parameters")
    trainer = scaled(model, folder, ascent_scope=scope)
    trainer.train()
    wrong = {
        "weights": fingerprint(model, "parameters") != before,
        "optimizer": bool(trainer.optimizer.state),
        "scale": trainer.accelerator.scaler.get_scale() != SCALE / 2,
        "skipped": not trainer.accelerator.optimizer_step_was_skipped,
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]
