"""What SAM meets in a Trainer, combined: the cases of `matrix.py` as tables."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import (
    MODELS,
    SparseEmbedding,
    bags,
    build,
    examples,
    images,
    llama,
    texts,
    vit,
)
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedConfig, TrainerCallback
from transformers.training_args import OptimizerNames

from hf_sam.config import ASCENT_SCOPES

FLOAT64 = 1e-9  # sums in another order, over at most 10 steps
FLOAT32 = 1e-5  # the same where a part of the model or of the loss computes in float32


@dataclass(frozen=True, eq=False)
class Case:
    """One combination. `settings` hold for the reference too, `sam` for SAMTrainer alone."""

    table: str
    line: str
    scope: str
    ranks: int = 1
    accumulation: int = 2
    batch: int = 4  # examples of one micro-batch
    model: str = "mlp"
    data: str = ""  # the model's own unless named
    settings: Mapping[str, Any] = field(default_factory=dict)
    sam: Mapping[str, Any] = field(default_factory=dict)
    ddp: Mapping[str, Any] = field(default_factory=dict)  # of the accelerator's ddp_handler
    callback: type[TrainerCallback] | None = None
    tolerance: float = FLOAT64
    refused: str = ""  # part of the message, where it must be refused
    slow: bool = False

    @property
    def split(self) -> str:
        """Ranks x micro-batches x examples."""
        return f"{self.ranks} x {self.accumulation} x {self.batch}"

    def __str__(self) -> str:
        return f"{self.table}: {self.line}: {self.scope}, {self.split}"


class Leftovers(IterableDataset[dict[str, Tensor]]):
    """34 examples: on one rank and on two, a last micro-batch that the Trainer does not step."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(examples(count=34))


class StopEpoch(TrainerCallback):
    """Gives up the epoch after the first micro-batch of the third step."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_epoch_stop = state.global_step == 2
        return control


class StopTraining(TrainerCallback):
    """Stops after the first micro-batch of the third step."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step == 2
        return control


class OutOfMemory(nn.Module):
    """Has no memory for micro-batches of more than 4 in the given forward pass and later ones."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.model, self.call, self.calls = build("batch_norm"), call, 0

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        if len(x) > 4 and self.calls >= self.call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return self.model(x, labels)


def configured() -> nn.Module:
    """With the configuration that the Trainer asks when it smooths labels."""
    model = build("mlp")
    model.config = PreTrainedConfig()
    return model


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


BUILD: dict[str, Callable[[], nn.Module]] = {
    **{name: (lambda name=name: build(name)) for name in MODELS},
    "float32": lambda: build("mlp", torch.float32),
    "configured": configured,
    "vit": lambda: seeded(vit),
    "llama": lambda: seeded(llama),
    "sparse": lambda: seeded(lambda: SparseEmbedding(sparse=True)),
    "dense": lambda: seeded(lambda: SparseEmbedding(sparse=False)),
    **{f"out of memory at {n}": (lambda n=n: OutOfMemory(n)) for n in (2, 3)},
}
DATA: dict[str, Callable[[], Any]] = {
    "vit": images,
    "llama": texts,
    "sparse": bags,
    "float32": lambda: examples(torch.float32),
    "leftovers": Leftovers,
}


def combinations() -> Iterator[Case]:
    """Model x optimizer x scope x ranks x split."""
    for model in MODELS:
        for name, settings in (
            ("SGD with momentum", {"optim": "sgd", "optim_args": "momentum=0.9"}),
            ("AdamW", {"optim": "adamw_torch", "learning_rate": 0.01}),
        ):
            for scope in ASCENT_SCOPES:
                for ranks, accumulation, batch in ((1, 1, 8), (1, 2, 4), (2, 1, 4), (2, 3, 2)):
                    yield Case(
                        "Models and base optimizers",
                        f"{model}, {name}",
                        scope,
                        ranks,
                        accumulation,
                        batch,
                        model,
                        settings={"max_steps": 10, **settings},
                    )


def optimizers() -> Iterator[Case]:
    """Every `optim` of TrainingArguments that is installed here."""
    for name in sorted(optim.value for optim in OptimizerNames):
        fused = name.endswith(("lomo", "layerwise"))
        targets = {"optim_target_modules": ["body.0"]} if name[:6] in ("galore", "apollo") else {}
        for scope in ASCENT_SCOPES:
            yield Case(
                "Every `optim`",
                f"`{name}`",
                scope,
                model="float32",
                settings={"optim": name, "learning_rate": 0.01, **targets},
                tolerance=FLOAT32,
                refused=f"got the optimizer {name}, which steps inside" if fused else "",
            )


CHECKPOINTING = {"gradient_checkpointing": True}
MODES: dict[str, dict[str, Any]] = {
    "clipping": {"settings": {"max_grad_norm": 0.1}},
    "weight decay": {"settings": {"optim": "adamw_torch", "weight_decay": 0.3}},
    "cosine schedule with warm-up": {
        "settings": {"lr_scheduler_type": "cosine", "warmup_steps": 2}
    },
    "ReduceLROnPlateau and evaluations": {
        "model": "batch_norm",
        "settings": {
            "lr_scheduler_type": "reduce_lr_on_plateau",
            "lr_scheduler_kwargs": {"patience": 0, "mode": "max"},
            "metric_for_best_model": "loss",
            "eval_strategy": "steps",
            "eval_steps": 1,
        },
    },
    "ASAM": {"sam": {"adaptive": True, "rho": 0.5}},
    "perturbation_norm=inf": {"sam": {"perturbation_norm": float("inf"), "rho": 0.005}},
    "label smoothing": {
        "model": "configured",
        "settings": {"label_smoothing_factor": 0.1},
        "tolerance": FLOAT32,  # transformers sums the smoothed part in float32
    },
    "gradient checkpointing, reentrant": {
        "model": "vit",
        "sam": {**CHECKPOINTING, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        "settings": {"ddp_find_unused_parameters": False},
    },
    "gradient checkpointing, not reentrant": {
        "model": "vit",
        "sam": {**CHECKPOINTING, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    },
    "torch_compile (aot_eager)": {
        "model": "batch_norm",
        "sam": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    },
    "num_items_in_batch": {"model": "llama", "tolerance": FLOAT32},
    "num_items_in_batch of each rank": {
        "model": "llama",
        "settings": {"average_tokens_across_devices": False},
        "tolerance": FLOAT32,
    },
    "NEFTune": {
        "model": "llama",
        "settings": {"neftune_noise_alpha": 5.0},
        "tolerance": FLOAT32,
    },
    "sparse gradients": {"model": "sparse"},
    "short last windows of epochs": {
        "accumulation": 4,
        "settings": {"max_steps": -1, "num_train_epochs": 2},
    },
    "leftovers of an iterable data set": {"accumulation": 4, "data": "leftovers"},
    "an epoch given up in mid-window": {"callback": StopEpoch},
    "training stopped in mid-window": {"callback": StopTraining},
}


def modes() -> Iterator[Case]:
    """What TrainingArguments and models switch on, with one rank and with two."""
    for line, mode in MODES.items():
        for scope in ASCENT_SCOPES:
            for ranks in (1, 2):
                yield Case("Features of the Trainer", line, scope, ranks, **mode)
    for scope in ASCENT_SCOPES:
        yield Case(
            "Features of the Trainer",
            "torch_compile (inductor)",
            scope,
            model="batch_norm",
            sam={"torch_compile": True},
            slow=True,
        )
        for line, call in (
            ("auto_find_batch_size, clean pass", 3 if scope == "micro_batch" else 2),
            ("auto_find_batch_size, perturbed pass", 2 if scope == "micro_batch" else 3),
        ):
            yield Case(
                "Features of the Trainer",
                line,
                scope,
                batch=5,
                model=f"out of memory at {call}",
                settings={"auto_find_batch_size": True},
            )


DDP: dict[str, dict[str, Any]] = {
    "ddp_find_unused_parameters=False": {"settings": {"ddp_find_unused_parameters": False}},
    "ddp_find_unused_parameters=True": {
        "model": "sometimes_used",
        "settings": {"ddp_find_unused_parameters": True},
    },
    "gradient_as_bucket_view": {"ddp": {"gradient_as_bucket_view": True}},
    "gradient_as_bucket_view, leftovers": {
        "data": "leftovers",
        "ddp": {"gradient_as_bucket_view": True},
    },
    "ddp_broadcast_buffers=True": {
        "model": "batch_norm",
        "settings": {"ddp_broadcast_buffers": True},
    },
    "ddp_broadcast_buffers=False": {
        "model": "batch_norm",
        "settings": {"ddp_broadcast_buffers": False},
    },
    "sync_each_batch": {
        "settings": {
            "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        }
    },
    "small buckets": {"settings": {"ddp_bucket_cap_mb": 1}, "model": "vit"},
}


def ddp() -> Iterator[Case]:
    """What DistributedDataParallel can be told, on two ranks; and three ranks."""
    table = "DistributedDataParallel"
    for scope in ASCENT_SCOPES:
        for accumulation in (1, 2):
            for line, case in DDP.items():
                yield Case(table, line, scope, 2, accumulation, **case)
            right = scope == "global" and accumulation == 1
            yield Case(
                table,
                "ddp_static_graph=True",
                scope,
                2,
                accumulation,
                settings={"ddp_find_unused_parameters": False},
                sam={"ddp_static_graph": True},
                refused="" if right else "set `ddp_static_graph=False`",
            )
            yield Case(table, "three ranks", scope, 3, accumulation, model="dropout_and_batch_norm")


CASES = [*combinations(), *optimizers(), *modes(), *ddp()]
