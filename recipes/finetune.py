"""Fine-tune an image classifier with SAM: load, train, evaluate, save, write the card.

accelerate launch recipes/finetune.py --dataset oxford_pets --rho 0.05
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from checkpoints import find_checkpoint, require_fitting
from hub import OF_THE_HUB, HubError, create_repo, push
from loading import load_splits, model_source, task_of
from options import DataOptions, ModelOptions, parse_options
from resolved import as_yaml
from stopwatch import Stopwatch
from tasks import Task
from transformers import set_seed
from transformers.utils import logging
from words import without_options

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.metrics import compute_metrics, rank_classes
from hf_sam.model_card import (
    METRICS,
    RunRecord,
    results_table,
    settings_of,
    without_tokens,
    write_run_card,
)
from hf_sam.vision import (
    CIFAR_NETWORKS,
    BadImageError,
    Classifier,
    EpochOfData,
    ImageDataset,
    ModelSource,
    Splits,
    build_transforms,
    freeze_batch_norm,
    load_classifier,
    soft_cross_entropy,
)

logger = logging.get_logger("finetune")


@dataclass(frozen=True)
class Run:
    """All that is loaded and checked before training."""

    task: Task
    splits: Splits
    source: ModelSource
    classifier: Classifier
    checkpoint: str | None


class RecipeError(Exception):
    """What the user can mend: said in one message, without a traceback."""


def main(argv: Sequence[str] | None = None) -> Mapping[str, float]:
    """Run the recipe and return its metrics; bad input ends in one message and exit status 1."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if "--print_config" in argv:
            print_config(argv)
            return {}
        return train(argv).metrics
    except (RecipeError, HubError) as error:
        sys.exit(f"finetune.py: {error}")
    except KeyboardInterrupt:
        sys.exit(
            "finetune.py: interrupted; `--resume_from_checkpoint last` goes on from the last "
            "checkpoint in the output folder, if there is one."
        )


def print_config(argv: Sequence[str]) -> None:
    """Print what the words of a command line come to; nothing is loaded or fetched.

    Raises:
        RecipeError: For input that does not do.
    """
    try:
        data, model, args = parse_options(argv)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if args.process_index == 0:
        print(as_yaml(data, model, args), end="")


def train(argv: Sequence[str]) -> RunRecord:
    """Fine-tune as the words of a command line say, save model, record and card, and push them.

    Raises:
        RecipeError: For input that does not do.
        HubError: If nothing can be pushed, before training; or if the push failed, after it.
    """
    try:
        data, model, args = parse_options(argv)
        # Or the Trainer would push too: all that lies in the folder, under a card of its own.
        is_pushed, args.push_to_hub = args.push_to_hub, False
        run = load(data, model, args)
        trainer = build_trainer(data, args, run)
    except (ImportError, ValueError) as error:
        raise RecipeError(str(error)) from error
    output_dir, is_main = Path(args.output_dir), trainer.is_world_process_zero()
    repo_id = None
    if is_pushed and is_main:
        repo_id = create_repo(args.hub_model_id, output_dir, private=args.hub_private_repo)
    try:
        train_metrics = trainer.train(resume_from_checkpoint=run.checkpoint).metrics
        metrics = {**train_metrics, **trainer.evaluate()}
    except BadImageError as error:
        raise RecipeError(str(error)) from error
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("all", metrics, combined=False)
    record = describe(argv, data, run, trainer, metrics)
    if is_main:
        write_run_card(output_dir / "README.md", record)
        record.write(output_dir / "run.json")  # the last: where it is, the run has ended
        print(f"\n{results_table(metrics)}\n\nmodel, metrics and card: {args.output_dir}")
    if repo_id is not None:
        print(f"pushed to {push(output_dir, repo_id)}")
    return record


def load(data: DataOptions, model: ModelOptions, args: SAMConfig) -> Run:
    """Load data and model, and check all that can be checked before training.

    Raises:
        ValueError: Saying what is wrong and what to do.
    """
    checkpoint = find_checkpoint(args)
    set_seed(args.seed)  # the head is drawn here
    task = task_of(data)
    with args.main_process_first():
        splits = load_splits(data, task, seed=args.seed)
    if not (len(splits.train) and len(splits.eval)):
        raise ValueError("both splits must have images, got an empty one: check the data.")
    batch = args.per_device_train_batch_size * args.world_size
    if batch > len(splits.train):
        raise ValueError(
            f"`per_device_train_batch_size` x processes must be <= {len(splits.train)}, the number "
            f"of training examples, got {batch}."
        )
    source = model_source(model, task)
    classifier = load_classifier(source, splits.label_names)
    logger.warning(f"model: {classifier.report}")
    if model.freeze_batch_norm:
        freeze_batch_norm(classifier.model)
    if model.channels_last:
        classifier.model.to(memory_format=torch.channels_last)
    if checkpoint is not None:
        require_fitting(Path(checkpoint), classifier.model)
    return Run(task, splits, source, classifier, checkpoint)


def build_trainer(data: DataOptions, args: SAMConfig, run: Run) -> SAMTrainer:
    """Put data, transforms, metrics and the loss together."""
    train_transform, eval_transform = build_transforms(
        run.classifier.data_config,
        crop_scale=run.task.crop_scale,
        horizontal_flip=run.task.horizontal_flip,
        auto_augment=data.auto_augment,
        crop_padding=data.crop_padding,
        cutout=data.cutout,
    )
    train_dataset = ImageDataset(
        run.splits.train,
        train_transform,
        split=run.task.train_split,
        seed=args.seed if args.data_seed is None else args.data_seed,
        mixup=data.mixup,
        classes=len(run.splits.label_names),
        cache=data.cache_images,
    )
    eval_dataset = ImageDataset(run.splits.eval, eval_transform, split=run.splits.eval_split)
    soft_loss = partial(soft_cross_entropy, label_smoothing=args.label_smoothing_factor)
    return SAMTrainer(
        model=run.classifier.model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=run.classifier.processor,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=rank_classes,
        compute_loss_func=soft_loss if data.mixup > 0 else None,
        callbacks=[EpochOfData(train_dataset), Stopwatch()],
    )


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
        gradient_evaluations=trainer.state.global_step * (2 if args.rho > 0 else 1),
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


if __name__ == "__main__":
    main()
