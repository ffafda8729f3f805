"""Small models that each hold one thing SAM implementations get wrong, and a run of the Trainer."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from hf_sam import SAMConfig, SAMTrainer

FEATURES, HIDDEN, CLASSES, EXAMPLES = 6, 12, 4, 48


class Classifier(nn.Module):
    """Cross-entropy over whatever `body` maps (N, FEATURES) to."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.body(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Residual(nn.Module):
    """A layer used by half of the batches only, as with layer drop or experts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x) if float(x[0, 0]) > 0 else x


def mlp() -> nn.Module:
    return Classifier(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))


def batch_norm() -> nn.Module:
    """No bias before BatchNorm: its gradient is rounding noise, which AdamW would scale up."""
    return Classifier(
        nn.Linear(FEATURES, HIDDEN, bias=False),
        nn.BatchNorm1d(HIDDEN),
        nn.Tanh(),
        nn.Linear(HIDDEN, CLASSES),
    )


def dropout() -> nn.Module:
    return Classifier(
        nn.Dropout(0.2),
        nn.Linear(FEATURES, HIDDEN),
        nn.Tanh(),
        nn.Dropout(0.3),
        nn.Linear(HIDDEN, CLASSES),
    )


def dropout_and_batch_norm() -> nn.Module:
    return Classifier(
        nn.Linear(FEATURES, HIDDEN, bias=False),
        nn.BatchNorm1d(HIDDEN),
        nn.Tanh(),
        nn.Dropout(0.3),
        nn.Linear(HIDDEN, CLASSES),
    )


def tied() -> nn.Module:
    model = Classifier(
        nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Linear(FEATURES, FEATURES), nn.Tanh()
    )
    model.body[2].weight = model.body[0].weight
    model.body.append(nn.Linear(FEATURES, CLASSES))
    return model


def frozen() -> nn.Module:
    model = mlp()
    model.body[0].requires_grad_(False)
    return model


def sometimes_used() -> nn.Module:
    return Classifier(Residual(), nn.Linear(FEATURES, CLASSES))


class Experts(nn.Module):
    """Uses one of two layers, by the weights: at w + epsilon perhaps another one than at w."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(FEATURES, FEATURES) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        chosen = int(1e4 * float(self.scale.detach().sum())) % 2
        return self.scale * self.experts[chosen](x)


def routed() -> nn.Module:
    return Classifier(Experts(), nn.Linear(FEATURES, CLASSES))


class Queue(nn.Module):
    """A loss that depends on what the passes before have left: a bank of features, a centre."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.register_buffer("bank", torch.randn(16, HIDDEN))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))
        self.register_buffer("centre", torch.zeros(HIDDEN))
        self.register_buffer("mask", torch.ones(HIDDEN))  # which nothing changes

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.a(x)) * self.mask
        near = (h @ self.bank.clone().T).softmax(dim=1) @ self.bank.clone()
        loss = F.cross_entropy(self.b(h + near - self.centre), labels)
        with torch.no_grad():
            rows = (self.at + torch.arange(len(x))) % len(self.bank)
            self.bank[rows] = h
            self.at.add_(len(x))
            self.centre.mul_(0.7).add_(h.mean(dim=0), alpha=0.3)
        return {"loss": loss}


def queue() -> nn.Module:
    torch.manual_seed(0)
    return Queue().double()


MODELS: dict[str, Callable[[], nn.Module]] = {
    f.__name__: f
    for f in (mlp, batch_norm, dropout, dropout_and_batch_norm, tied, frozen, sometimes_used)
}


def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return (MODELS | {"routed": routed})[name]().to(dtype)


def examples(dtype: torch.dtype = torch.float64, count: int = EXAMPLES) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return [{"x": row.to(dtype), "labels": label} for row, label in zip(x, labels, strict=True)]


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD with momentum": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "AdamW": {"optim": "adamw_torch", "learning_rate": 0.01},
}


class Draws(TrainerCallback):
    """Remembers torch's random state when each step begins: data loading draws in between."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.states.append(torch.get_rng_state())


class Recorder:
    """A collator that remembers the micro-batches in the order in which they were trained on."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Tensor]] = []

    def __call__(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch = default_data_collator(rows)
        self.batches.append(copy.deepcopy(batch))
        return batch


def make_trainer(
    model: nn.Module,
    tmp_path: Path,
    *,
    trainer: type[Trainer] = SAMTrainer,
    config: type[TrainingArguments] = SAMConfig,
    dtype: torch.dtype = torch.float64,
    recorder: Recorder | None = None,
    data: Any = None,
    trainer_kwargs: dict[str, Any] | None = None,
    **settings: Any,
) -> Trainer:
    """A Trainer on the CPU, 20 steps of 8 examples by plain SGD unless told otherwise."""
    defaults = {
        "output_dir": str(tmp_path),
        "max_steps": 20,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "logging_steps": 5,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return trainer(
        model=model,
        args=config(**{**defaults, **settings}),
        train_dataset=examples(dtype) if data is None else data,
        data_collator=recorder or default_data_collator,
        **(trainer_kwargs or {}),
    )


def uneven() -> nn.Module:
    """Shards of two ranks: an empty one of the layer with one unit, odd ones, and a norm's."""
    return Classifier(
        nn.Linear(FEATURES, 5),
        nn.LayerNorm(5),
        nn.Tanh(),
        nn.Linear(5, 1),
        nn.Linear(1, CLASSES),
    )


class SparseEmbedding(nn.Module):
    """A table whose gradients are sparse, or the same with dense ones."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(16, CLASSES, sparse=sparse)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.table(input_ids).mean(1), labels)}


def bags(count: int = EXAMPLES) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(16, (count, 3), generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return [{"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True)]
