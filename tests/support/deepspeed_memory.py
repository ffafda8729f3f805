"""What SAM's step takes of memory under ZeRO, beside the plain Trainer's step."""

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


class Steps(TrainerCallback):
    """Notes of each step what lives when it begins, and the most that lives in it."""

    def __init__(self, followed: LiveBytes) -> None:
        self.followed, self.starts, self.peaks = followed, [], []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.followed.peak = self.followed.live()
        self.starts.append(self.followed.peak)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.peaks.append(self.followed.peak)


def memory(folder: Path, engine: dict[str, Any], **settings: Any) -> tuple[float, float]:
    """Bytes for each parameter: what lives between steps, and the most that lives in one.

    Of the steps after the warm-up the smallest counts: gloo's threads let go of tensors late.
    """
    torch.manual_seed(0)
    wide = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    model = Classifier(nn.Linear(FEATURES, WIDTH), *wide, nn.Linear(WIDTH, CLASSES))
    params = list(model.parameters())
    count = sum(param.numel() for param in params)
    followed = LiveBytes()
    followed.follow(params)
    noted = Steps(followed)
    usual = {
        "max_steps": WARM_UP + STEPS,
        "optim": "sgd",
        "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": 1,
        "logging_strategy": "no",
        "trainer_kwargs": {"callbacks": [noted]},
    }
    trainer = trainer_of(folder, model, engine, **{**usual, **settings})
    with followed:
        trainer.train()
    return min(noted.starts[WARM_UP:]) / count, min(noted.peaks[WARM_UP:]) / count


def extra_memory(folder: Path, engine: dict[str, Any], **settings: Any) -> dict[str, float]:
    """Bytes for each parameter that SAM has more, between steps and at the peak of one."""
    plain = memory(folder, engine, **{**settings, "trainer": Trainer})
    sam = memory(folder, engine, rho=0.05, **settings)
    return {"between steps": sam[0] - plain[0], "at the peak": sam[1] - plain[1]}
