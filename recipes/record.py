"""What is said of a finished run, in its record and its card."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fields import DataOptions
from hub import OF_THE_HUB
from stopwatch import Stopwatch
from tasks import Task
from words import without_options

from hf_sam import SAMTrainer
from hf_sam.model_card import METRICS, RunRecord, settings_of, without_tokens
from hf_sam.vision import CIFAR_NETWORKS, Classifier, ModelSource, Splits


@dataclass(frozen=True)
class Run:
    """All that is loaded and checked before training."""

    task: Task
    splits: Splits
    source: ModelSource
    classifier: Classifier
    checkpoint: str | None


def describe(
    argv: Sequence[str],
    data: DataOptions,
    run: Run,
    trainer: SAMTrainer,
    metrics: Mapping[str, float],
) -> RunRecord:
    """Collect all that is said of a finished run."""
    source, args = run.source, trainer.args
    local = Path(source.name).exists()
    base = Path(source.name).name
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # accelerate launch sets it
    launcher = ["accelerate", "launch"] if launched else ["python"]
    told = without_options(argv, "resume_from_checkpoint", *OF_THE_HUB)  # not how it was trained
    is_hub = source.own_weights and not local
    callbacks = trainer.callback_handler.callbacks  # resuming replaces the one that was passed
    log = trainer.state.log_history
    stopwatch = next(c for c in callbacks if isinstance(c, Stopwatch))
    return RunRecord(
        dataset=data.dataset or (Path(data.data_dir).name if data.data_dir else "digits"),
        dataset_id=None if data.data_dir else run.task.hub_id,
        train_examples=len(run.splits.train),
        eval_split=run.splits.eval_split,
        eval_examples=len(run.splits.eval),
        classes=len(run.splits.label_names),
        base=base,
        base_model=(source.name if "/" in source.name else f"timm/{base}") if is_hub else None,
        timm=run.classifier.processor is None,
        report=str(run.classifier.report),
        command=" ".join(without_tokens([*launcher, "recipes/finetune.py", *told])),
        metrics={name: metrics[name] for name in ("eval_loss", *METRICS)},
        gradient_evaluations=trainer.gradient_evaluations,
        seconds=round(stopwatch.seconds, 1),
        data_options=_chosen(data),
        data_license=run.task.license,
        sharpness=next((e["sharpness"] for e in reversed(log) if "sharpness" in e), None),
        remarks=_remarks(run),
        **settings_of(args),
    )


def _chosen(data: DataOptions) -> dict[str, Any]:
    """Return the options that say what is done to the images, where they are not the defaults."""
    names = ("crop_scale", "crop_padding", "horizontal_flip", "auto_augment", "cutout", "mixup")
    names += ("label_noise", "max_train_samples", "max_eval_samples")
    default = DataOptions()
    return {n: getattr(data, n) for n in names if getattr(data, n) != getattr(default, n)}


def _remarks(run: Run) -> list[str]:
    """Return what a reader of the results must know."""
    remarks = [str(remark) for remark in (run.task.paper, run.task.limits) if remark]
    if run.source.name in CIFAR_NETWORKS:
        remarks.append("Loading this network takes an `import hf_sam.vision` before.")
    return remarks
