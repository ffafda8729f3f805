"""What SAM's step takes of memory under ZeRO, beside the plain Trainer's step."""

import time
from pathlib import Path
from typing import Any

import torch
from cases import CLASSES, FEATURES, Classifier
from deepspeed_runs import trainer_of
from live_bytes import LiveBytes
from torch import nn
from transformers import Trainer, TrainerCallback

WIDTH, LAYERS = 192, 16
# One bucket for all gradients, as the usual size has it for most models.
ZERO = {
    "reduce_bucket_size": 10**6,
    "allgather_bucket_size": 10**6,
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": WIDTH,
}
WARM_UP, STEPS = 2, 5
SETTLED = 0.02  # seconds in which gloo's threads let go of what they have reduced


class Held(TrainerCallback):
    """Notes of each step what lives when it begins, and the most that lives when a pass begins.

    What lives within a pass depends on when gloo's threads let go of a tensor; what a pass itself
    takes is the same with SAM and without.
    """

    def __init__(self, model: nn.Module) -> None:
        self.followed, self.starts, self.passes = LiveBytes(), [], []
        self.followed.follow(list(model.parameters()))
        model.register_forward_pre_hook(self.on_pass)

    def live(self) -> int:
        time.sleep(SETTLED)
        return self.followed.live()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.starts.append(self.live())
        self.passes.append(0)

    def on_pass(self, *args: Any) -> None:
        self.passes[-1] = max(self.passes[-1], self.live())


def memory(folder: Path, engine: dict[str, Any], **settings: Any) -> tuple[float, float]:
    """Bytes for each parameter: what lives between steps, and when a pass begins.

    Of the steps after the warm-up the smallest counts.
    """
    torch.manual_seed(0)
    wide = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    model = Classifier(nn.Linear(FEATURES, WIDTH), *wide, nn.Linear(WIDTH, CLASSES))
    count, held = sum(param.numel() for param in model.parameters()), Held(model)
    usual = {
        "max_steps": WARM_UP + STEPS,
        "optim": "sgd",
        "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": 1,
        "logging_strategy": "no",
        "trainer_kwargs": {"callbacks": [held]},
    }
    trainer = trainer_of(folder, model, engine, **{**usual, **settings})
    with held.followed:
        trainer.train()
    return min(held.starts[WARM_UP:]) / count, min(held.passes[WARM_UP:]) / count


def extra_memory(folder: Path, engine: dict[str, Any], **settings: Any) -> dict[str, float]:
    """Bytes for each parameter that SAM has more, between steps and when a pass begins."""
    plain = memory(folder, engine, **{**settings, "trainer": Trainer})
    sam = memory(folder, engine, rho=0.05, **settings)
    return {"between steps": sam[0] - plain[0], "in a pass": sam[1] - plain[1]}
