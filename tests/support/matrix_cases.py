"""What SAM meets in a Trainer, combined: the cases of `matrix.py` as tables."""

from collections.abc import Iterator
from typing import Any

from cases import MODELS, OPTIMIZERS
from matrix_case import BFLOAT16, FLOAT32, Case
from matrix_deepspeed import deepspeed
from matrix_methods import methods
from matrix_models import StopEpoch, StopTraining
from matrix_ranks import ddp, sharded
from transformers.training_args import OptimizerNames

from hf_sam.config import ASCENT_SCOPES


def combinations() -> Iterator[Case]:
    """Model x optimizer x scope x ranks x split."""
    for model in MODELS:
        for name, settings in OPTIMIZERS.items():
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
                optional=True,
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
    "ascent_interval": {
        "sam": {"ascent_interval": 2},
        "meaning": {"share": lambda step: float(step % 2 == 0)},
    },
    "ascent_fraction": {
        "model": "dropout_and_batch_norm",
        "sam": {"ascent_fraction": 0.5},
        "meaning": {"kept": 2},
    },
    "ascent_fraction, num_items_in_batch": {
        "model": "llama",
        "sam": {"ascent_fraction": 0.75},
        "meaning": {"kept": 3},
        "tolerance": FLOAT32,
    },
    "max_overhead": {
        "accumulation": 3,
        "sam": {"max_overhead": 1.2},  # two of four examples at every third of six steps
        "meaning": {"kept": 2, "share": lambda step: float(step % 3 == 0)},
    },
    "ascent_start and a falling rho": {
        "sam": {"ascent_start": 0.3, "rho_schedule": "linear", "rho": 0.2},
        "meaning": {"share": lambda step: [0, 0, 1, 0.75, 0.5, 0.25][step], "rho": 0.2},
    },
    "perturb=norm": {
        "model": "batch_norm",
        "sam": {"perturb": "norm", "rho": 0.5},
        "meaning": {"perturb": lambda name: name.startswith("body.1.")},
    },
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
    "sparse gradients": {"model": "sparse", "optional": True},
    "a queue in buffers": {"model": "queue"},
    "a queue in buffers, ascent_fraction": {
        "model": "queue",
        "sam": {"ascent_fraction": 0.5},
        "meaning": {"kept": 2},
    },
    "a loss module outside the model": {"model": "body", "kind": "loss module"},
    "a loss module outside the model, ASAM": {
        "model": "body",
        "kind": "loss module",
        "sam": {"adaptive": True, "rho": 0.5},
    },
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


def precision() -> Iterator[Case]:
    """Autocast, a gradient scaler, and weights of few bits."""
    for scope in ASCENT_SCOPES:
        for ranks in (1, 2):
            table = "Precision"
            yield Case(
                table,
                "bf16 autocast",
                scope,
                ranks,
                model="float32",
                settings={"bf16": True},
                tolerance=BFLOAT16,
            )
            yield Case(table, "gradient scaler", scope, ranks, model="float32", scaler=True,
                       tolerance=FLOAT32)  # fmt: skip
            yield Case(table, "gradient scaler, ascent_fraction", scope, ranks, model="float32",
                       scaler=True, sam={"ascent_fraction": 0.5}, meaning={"kept": 2},
                       tolerance=FLOAT32)  # fmt: skip
            yield Case(
                table,
                "bfloat16 weights",
                scope,
                ranks,
                model="bfloat16",
                settings={"learning_rate": 0.5},
                sam={"rho": 0.5},
                tolerance=BFLOAT16,
            )
            yield Case(
                table,
                "bfloat16 weights that swallow the perturbation",
                scope,
                ranks,
                model="bfloat16",
                sam={"rho": 1e-4},
                refused="or set `allow_rounded_perturbation=True` to train on",
            )


def trainers() -> Iterator[Case]:
    """Trainers that bring a step, a loss or a collator of their own."""
    for scope in ASCENT_SCOPES:
        for ranks in (1, 2):
            yield Case("Other trainers", "Seq2SeqTrainer, T5", scope, ranks, model="t5",
                       kind="Seq2SeqTrainer", tolerance=FLOAT32)  # fmt: skip
            yield Case("Other trainers", "SFTTrainer (trl), LoRA (peft)", scope, ranks,
                       model="llama with an adapter", data="texts", kind="SFTTrainer",
                       tolerance=FLOAT32)  # fmt: skip
            yield Case("Other trainers", "BERT, sequence classification", scope, ranks,
                       model="bert", tolerance=FLOAT32)  # fmt: skip


CASES = [
    *combinations(),
    *optimizers(),
    *modes(),
    *ddp(),
    *precision(),
    *sharded(),
    *trainers(),
    *methods(),
    *deepspeed(),
]
