"""The record of a finished run, collected for its card and for comparisons."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import timm
from accelerate import PartialState

from .. import SAMTrainer
from ..reporting.commands import last_part, shown_command, without_path
from ..reporting.model_card import METRICS, RunRecord, settings_of
from ..vision import CIFAR_NETWORKS, Classifier, ModelSource, Splits, Task
from .arguments import without_options
from .fields import DataOptions
from .hub import OF_THE_HUB
from .stopwatch import stopwatch_of

# Data options that the record has under another name, or that change no result.
SAID_ELSEWHERE = {"dataset", "data_dir", "eval_split", "image_column", "label_column"}
SAID_ELSEWHERE |= {"max_image_pixels", "cache_images"}


@dataclass(frozen=True)
class Run:
    """Everything that is loaded and checked before training."""

    task: Task
    splits: Splits
    source: ModelSource
    classifier: Classifier
    checkpoint: str | None
    freezes_batch_norm: bool


def describe(
    argv: Sequence[str],
    data: DataOptions,
    run: Run,
    trainer: SAMTrainer,
    metrics: Mapping[str, float],
) -> RunRecord:
    """Collect the record of a finished run."""
    source, args = run.source, trainer.args
    base = last_part(source.name)
    settings = settings_of(args, trainer.ascent_schedule)
    settings["hyperparameters"] = _as_used(settings["hyperparameters"], trainer)
    is_best = args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None
    return RunRecord(
        dataset=data.dataset or (last_part(data.data_dir) if data.data_dir else "digits"),
        dataset_id=None if data.data_dir else run.task.hub_id,
        train_examples=len(run.splits.train),
        eval_split=run.splits.eval_split,
        eval_examples=len(run.splits.eval),
        classes=len(run.splits.label_names),
        base=base,
        base_model=_hub_id(source),
        timm=run.classifier.processor is None,
        report=str(run.classifier.report),
        command=command_of("finetune", argv),
        metrics={name: metrics[name] for name in ("eval_loss", *METRICS)},
        gradient_evaluations=trainer.gradient_evaluations,
        seconds=round(stopwatch_of(trainer).seconds, 1),
        train_overhead=trainer.train_overhead and round(trainer.train_overhead, 3),
        data_options=_chosen(data),
        model_options=_model_options(run),
        data_license=run.task.license,
        weights_license=_license(source),
        remarks=_remarks(run, metrics, is_best=is_best),
        **settings,
    )


def _as_used(hyperparameters: Mapping[str, Any], trainer: SAMTrainer) -> dict[str, Any]:
    """Return the hyperparameters with the batch size that fitted, and without an unused length."""
    size = trainer._train_batch_size // max(1, trainer.args.n_gpu)
    used = {**hyperparameters, "per_device_train_batch_size": size}
    if trainer.args.max_steps > 0:
        del used["num_train_epochs"]
    return used


def _chosen(data: DataOptions) -> dict[str, Any]:
    """Return the options for the images that are not at their defaults."""
    return {
        field.name: value
        for field in fields(DataOptions)
        if field.name not in SAID_ELSEWHERE
        and (value := getattr(data, field.name)) != field.default
    }


def command_of(name: str, argv: Sequence[str]) -> str:
    """Return the command that repeats the run, without tokens and with shortened paths."""
    arguments = without_options(argv, "resume_from_checkpoint", "output_dir", *OF_THE_HUB)
    module = ["-m", {"finetune": "hf_sam.finetuning", "compare": "hf_sam.comparing"}[name]]
    processes = PartialState().num_processes
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # accelerate launch sets it
        launcher = ["accelerate", "launch", "--num_processes", str(processes), *module]
    elif processes > 1:
        launcher = ["torchrun", "--nproc_per_node", str(processes), *module]
    else:
        launcher = ["hf-sam", name]
    return shown_command([*launcher, *arguments])


def _model_options(run: Run) -> dict[str, Any]:
    """Return the network's image size, normalisation and arguments, and frozen BatchNorm."""
    config = run.classifier.data_config
    kwargs = json.loads(without_path(json.dumps(dict(run.source.model_kwargs))))
    return {
        "image_size": config["input_size"][-1],
        "mean": [round(float(value), 6) for value in config["mean"]],
        "std": [round(float(value), 6) for value in config["std"]],
        "model_kwargs": kwargs or None,
        "freeze_batch_norm": run.freezes_batch_norm or None,
    }


def _hub_id(source: ModelSource) -> str | None:
    """Return where on the Hub the pretrained weights come from; None if from elsewhere."""
    if not source.own_weights or Path(source.name).exists():
        return None
    name = source.timm_name
    return source.name if name is None else timm.get_pretrained_cfg(name).hf_hub_id


def _license(source: ModelSource) -> str | None:
    """Return the licence of the pretrained weights, if timm knows it."""
    if not source.own_weights or source.timm_name is None:
        return None
    return timm.get_pretrained_cfg(source.timm_name).license


def _differing(task: Task, splits: Splits) -> list[str]:
    """Return a remark if the data differ in size from those with published results."""
    here = {"classes": len(splits.label_names), "examples": len(splits.eval)}
    published = {"classes": task.classes, "examples": task.sizes.get(splits.eval_split)}
    parts = [
        f"{here[what]:,} of {n:,} {what}"
        for what, n in published.items()
        if n not in (None, here[what])
    ]
    if not parts:
        return []
    return [f"Measured on {' and '.join(parts)}: do not compare it with published figures."]


def _remarks(run: Run, metrics: Mapping[str, float], *, is_best: bool) -> list[str]:
    """Return the caveats for a reader of the results."""
    remarks = [str(remark) for remark in (run.task.paper, run.task.limits) if remark]
    remarks += _differing(run.task, run.splits)
    if not math.isfinite(metrics["eval_loss"]):
        remarks.append("Training has diverged: the network predicts nothing.")
    if is_best:
        remarks.append(
            "These are the weights that did best on this split while training: the result is no "
            "estimate for new images."
        )
    if run.source.name in CIFAR_NETWORKS:
        remarks.append("Loading this network takes an `import hf_sam.vision` before.")
    return remarks
