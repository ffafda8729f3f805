"""The command `hf-sam finetune`: loads, trains, evaluates and saves an image classifier.

hf-sam finetune --dataset oxford_pets --rho 0.05
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from .. import SAMConfig, SAMTrainer
from ..metrics import rank_classes
from ..reporting.model_card import RunRecord, results_table, write_run_card
from ..vision import (
    BadImageError,
    EpochOfData,
    ImageDataset,
    build_transforms,
    freeze_batch_norm,
    load_classifier,
    require_memory,
    resize_whole,
    soft_cross_entropy,
)
from .checkpoints import (
    find_checkpoint,
    has_trained,
    how_to_go_on,
    require_fitting,
    require_steps_left,
)
from .disk import DiskFullError, full_disk_named
from .fields import DataOptions, ModelOptions
from .folder import RECORD, claimed, run_options, write_options
from .hub import HubError, create_repo, push
from .image_errors import ErrorsOfRun, LastEvaluation
from .loading import load_splits, model_source, processes_here, task_of
from .options import parse_options
from .record import Run, describe
from .resolved import as_yaml
from .rotation import CheckpointRotation
from .stopwatch import Stopwatch, stopwatch_of

logger = logging.get_logger("finetune")


class RecipeError(Exception):
    """An error that the user can fix, shown as one message without a traceback."""


class LastStepLogged(TrainerCallback):
    """Logs at the last step too, so that a run shorter than `logging_steps` logs its losses."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Request a log entry at the last step."""
        if args.logging_strategy == "steps" and state.global_step >= state.max_steps:
            control.should_log = True


@contextmanager
def files_without_bars() -> Iterator[None]:
    """Context manager that hides the progress bars of weights being read and written."""
    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def main(
    argv: Sequence[str] | None = None, *, program: str = "hf-sam finetune"
) -> Mapping[str, float]:
    """Run the command and return its metrics; invalid input ends in one message and exit status 1.

    Args:
        argv: The command-line arguments; None for those of the process.
        program: The command's name in messages.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        if "--print_config" in argv:
            print_config(argv)
            return {}
        return train(argv).metrics
    except (RecipeError, HubError) as error:
        sys.exit(f"{program}: {error}")
    except DiskFullError as error:
        sys.exit(f"{program}: {error}; then {how_to_go_on(error.folder)}")
    except KeyboardInterrupt:
        sys.exit(
            f"{program}: interrupted; `--resume_from_checkpoint last` goes on from the last whole "
            "checkpoint in the output folder. If there is none, the same command begins anew."
        )


def print_config(argv: Sequence[str]) -> None:
    """Print the options that result from command-line arguments; nothing is loaded.

    Raises:
        RecipeError: For invalid input.
    """
    try:
        data, model, args = parse_options(argv)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if args.process_index == 0:
        print(as_yaml(data, model, args), end="")


def train(
    argv: Sequence[str], *, from_file: Sequence[str] | None = None, is_claimed: bool = False
) -> RunRecord:
    """Fine-tune by command-line arguments, save model, record and card, and push them if asked to.

    Args:
        argv: The command-line arguments.
        from_file: What `read_config` has read of the file of `--config`; None: it is read now.
        is_claimed: Whether the caller has locked the output folder.

    Raises:
        RecipeError: For invalid input.
        HubError: Before training if pushing is not possible; after training if it failed.
        DiskFullError: If the disk is full.
    """
    with ExitStack() as held:
        try:
            data, model, args = parse_options(argv, from_file=from_file)
            # Else the Trainer would push too: all files of the folder, and a card of its own.
            is_pushed, args.push_to_hub = args.push_to_hub, False
            options = run_options(data, model, args)
            output_dir, is_main = Path(args.output_dir), args.process_index == 0
            held.enter_context(full_disk_named(output_dir))
            if is_main and not is_claimed:
                held.enter_context(claimed(output_dir))
            run = load(data, model, args)
            trainer = build_trainer(data, args, run)
            repo_id = None
            if is_pushed and is_main:
                repo_id = create_repo(args.hub_model_id, output_dir, private=args.hub_private_repo)
            if is_main:
                at = run.checkpoint
                ended = at is not None and has_trained(Path(at))
                write_options(output_dir, options, resumed=at is not None, has_trained=ended)
        except (ImportError, ValueError) as error:
            raise RecipeError(str(error)) from error
        with files_without_bars():
            try:
                trainer.train(resume_from_checkpoint=run.checkpoint)
                metrics = trainer.evaluate()
            except BadImageError as error:
                raise RecipeError(str(error)) from error
            except (ImportError, ValueError) as error:
                if stopwatch_of(trainer).has_begun:
                    raise
                raise RecipeError(str(error)) from error  # a check before the first step
            record = save(argv, data, run, trainer, metrics)
        if repo_id is not None:
            print(f"pushed to {push(output_dir, repo_id)}")
    return record


def save(
    argv: Sequence[str],
    data: DataOptions,
    run: Run,
    trainer: SAMTrainer,
    metrics: dict[str, float],
) -> RunRecord:
    """Save model, metrics, card and record; the record, written last, marks the run as finished."""
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("all", metrics, combined=False)
    record, output_dir = describe(argv, data, run, trainer, metrics), Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        write_run_card(output_dir / "README.md", record)
        ErrorsOfRun.of(trainer.compute_metrics.prediction, run.splits).write(output_dir)
        record.write(output_dir / RECORD)
        print(f"\n{results_table(metrics)}\n\nmodel, metrics and card: {output_dir}")
    return record


def load(data: DataOptions, model: ModelOptions, args: SAMConfig) -> Run:
    """Load data and model, and check what can be checked before training.

    Raises:
        ValueError: With what is wrong and what to do.
    """
    checkpoint = find_checkpoint(args)
    set_seed(args.seed)  # the head is drawn here
    task = task_of(data)
    with args.main_process_first():
        splits = load_splits(data, task, seed=args.seed)
    if not (len(splits.train) and len(splits.eval)):
        raise ValueError("both splits must have images, got an empty one: check the data.")
    logger.warning(
        f"data: {len(splits.train):,} images to train on, {len(splits.eval):,} of the split "
        f"{splits.eval_split} to measure on, {len(splits.label_names)} classes"
    )
    batch = args.per_device_train_batch_size * args.world_size
    if batch > len(splits.train):
        raise ValueError(
            f"`per_device_train_batch_size` x processes must be <= {len(splits.train)}, the number "
            f"of training examples, got {batch}: lower it."
        )
    if checkpoint is not None:
        require_steps_left(Path(checkpoint), args, examples=len(splits.train))
    source = model_source(model, task)
    with nullcontext() if source.own_weights else files_without_bars():  # shows downloads only
        classifier = load_classifier(source, splits.label_names)
    logger.warning(f"model: {classifier.report}")
    if model.freeze_batch_norm:
        freeze_batch_norm(classifier.model)
    if model.channels_last and args.deepspeed_plugin is None:
        classifier.model.to(memory_format=torch.channels_last)
    if checkpoint is not None:
        require_fitting(Path(checkpoint), classifier.model)
    return Run(task, splits, source, classifier, checkpoint, model.freeze_batch_norm)


def build_trainer(data: DataOptions, args: SAMConfig, run: Run) -> SAMTrainer:
    """Build the Trainer from data, transforms, metrics and the loss."""
    train_transform, eval_transform = build_transforms(
        run.classifier.data_config,
        crop_scale=run.task.crop_scale,
        horizontal_flip=run.task.horizontal_flip,
        auto_augment=data.auto_augment,
        crop_padding=data.crop_padding,
        cutout=data.cutout,
        squash=run.task.squash,
    )
    train_dataset = ImageDataset(
        run.splits.train,
        train_transform,
        split=run.task.train_split,
        seed=args.seed if args.data_seed is None else args.data_seed,
        mixup=data.mixup,
        classes=len(run.splits.label_names),
        cache=data.cache_images,
        shrink=resize_whole(run.classifier.data_config) if data.crop_padding else None,
        max_pixels=data.max_image_pixels,
    )
    if data.cache_images:
        copies = max(1, args.dataloader_num_workers) * processes_here(args)
        logger.warning(require_memory(train_dataset, copies=copies))
    eval_dataset = ImageDataset(
        run.splits.eval,
        eval_transform,
        split=run.splits.eval_split,
        max_pixels=data.max_image_pixels,
    )
    rotation = CheckpointRotation(args.save_total_limit)
    args.save_total_limit = None  # else the Trainer would remove checkpoints too
    soft_loss = partial(soft_cross_entropy, label_smoothing=args.label_smoothing_factor)
    try:
        return SAMTrainer(
            model=run.classifier.model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=run.classifier.processor,
            compute_metrics=LastEvaluation(),
            preprocess_logits_for_metrics=rank_classes,
            compute_loss_func=soft_loss if data.mixup > 0 else None,
            callbacks=[EpochOfData(train_dataset), Stopwatch(), LastStepLogged(), rotation],
        )
    except RuntimeError as error:  # what `report_to` names is not installed
        raise ValueError(str(error)) from error
