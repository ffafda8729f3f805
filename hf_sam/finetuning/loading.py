"""Loading of the data that the options ask for, and the source of the model."""

import dataclasses
import os
from collections.abc import Container, Sequence
from pathlib import Path

import datasets
from transformers import TrainingArguments
from transformers.utils import logging

from ..vision import (
    EVAL_SPLITS,
    TASKS,
    ModelSource,
    Splits,
    Task,
    load_local,
    load_task,
    select_split,
    select_splits,
    split_off,
    with_label_noise,
)
from .fields import DataOptions, ModelOptions

logger = logging.get_logger("finetune")
# Options that override what the table of tasks has.
OF_THE_TASK = ("train_split", "eval_split", "image_column", "label_column", "horizontal_flip")


def task_of(options: DataOptions) -> Task:
    """Return the data set's entry in the table of tasks, with the user's options in it."""
    if options.dataset in TASKS or (options.dataset is None and options.data_dir is None):
        task = TASKS[options.dataset or "digits"]
    else:  # the user's own data
        task = Task(options.dataset, eval_split=None, image_column=None, label_column=None)
    chosen = {name: getattr(options, name) for name in OF_THE_TASK}
    chosen["squash"] = options.squash or None
    chosen["crop_scale"] = options.crop_scale and tuple(options.crop_scale)
    return dataclasses.replace(task, **{k: v for k, v in chosen.items() if v is not None})


def load_splits(options: DataOptions, task: Task, *, seed: int) -> Splits:
    """Load the training and the evaluation split, and compare their sizes with the table of tasks.

    Raises:
        ValueError: If they cannot be loaded, or differ from the table although from the Hub.
    """
    found = find_splits(options, task)
    _compare_sizes(found, task, local=options.data_dir is not None)
    train_split, eval_split = _split_names(found, options, task)
    splits = select_splits(
        found,
        task,
        train_split=train_split,
        eval_split=eval_split,
        eval_share=options.eval_share,
        skip_bad_images=options.skip_bad_images,
        max_pixels=options.max_image_pixels,
    )
    if task.classes not in (None, len(splits.label_names)):
        logger.warning(f"{len(splits.label_names)} classes, where the paper has {task.classes}")
    train, evaluation = _sample(splits.train, options.max_train_samples, seed), splits.eval
    if options.label_noise:
        train = with_label_noise(
            train, options.label_noise, classes=len(splits.label_names), seed=seed
        )
    if options.holdout is not None:
        train, evaluation = split_off(train, options.holdout, option="holdout", seed=seed)
        splits = dataclasses.replace(splits, eval_split=f"{train_split} (held out)")
    return dataclasses.replace(
        splits,
        train=train,
        eval=_sample(evaluation, options.max_eval_samples, 0),  # the same for all seeds
    )


def processes_here(args: TrainingArguments) -> int:
    """Return how many processes of the run share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))


def find_splits(
    options: DataOptions, task: Task, *, asked: Sequence[str] = ()
) -> datasets.DatasetDict:
    """Load all splits of the data set that the options name.

    Args:
        options: Where the data are.
        task: Names the splits to train and to measure on.
        asked: Names of further splits, which may be any folders or files.

    Raises:
        ValueError: If they cannot be loaded.
    """
    if options.data_dir is not None:
        names = [name for name in (task.train_split, task.eval_split, *asked) if name]
        return load_local(Path(options.data_dir), "+".join(names).split("+"))
    return load_task(task)


def eval_split_of(task: Task, found: Container[str]) -> str:
    """Return the split to measure on: the chosen one, or the first of the usual ones."""
    return task.eval_split or next((s for s in EVAL_SPLITS if s in found), EVAL_SPLITS[0])


def require_images_to_measure_on(options: DataOptions) -> None:
    """Check that a run will find its evaluation split.

    Raises:
        ValueError: If the data have none.
    """
    if options.eval_share is None:
        task = task_of(options)
        found = find_splits(options, task)
        select_split(found, eval_split_of(task, found))


def _split_names(
    found: datasets.DatasetDict, options: DataOptions, task: Task
) -> tuple[str, str | None]:
    """Return the names of the training and the evaluation split; None if on training images."""
    if options.evaluates_on_train:
        only = len(found) == 1 and options.train_split is None
        return next(iter(found)) if only else task.train_split, None
    eval_split = eval_split_of(task, found)
    if common := set(task.train_split.split("+")) & set(eval_split.split("+")):
        logger.warning(
            f"the split {common.pop()} is both trained and measured on: the errors are no estimate "
            "for new images; `--eval_split` names another, `--eval_share 0.1` splits a part off"
        )
    return task.train_split, eval_split


def model_source(options: ModelOptions, task: Task) -> ModelSource:
    """Return the source of the model: the user's choice, or the data set's default."""
    own = options.model is None and options.weights is None and task.init_scratch
    return ModelSource(
        name=options.model or task.model,
        weights=Path(options.weights) if options.weights else None,
        init_scratch=options.init_scratch or own,
        model_kwargs=options.parsed_kwargs(),
        image_size=options.image_size or task.image_size,
        mean=options.mean,
        std=options.std,
        squash=task.squash,
    )


def _compare_sizes(found: datasets.DatasetDict, task: Task, *, local: bool) -> None:
    """Raise if a copy on the Hub differs from the table in size; warn if it is a local copy."""
    differing = [
        f"{split} has {len(found[split])} examples, not {size}"
        for split, size in task.sizes.items()
        if split in found and len(found[split]) != size
    ]
    if differing and not local:
        raise ValueError(
            f"`{task.hub_id}` must have the split sizes of the table, but {', '.join(differing)}: "
            "the copy on the Hub has changed. Download one that has them and pass `--data_dir`."
        )
    if differing:
        logger.warning(f"split sizes differ from the published ones: {', '.join(differing)}")


def _sample(rows: datasets.Dataset, most: int | None, seed: int) -> datasets.Dataset:
    if most is None or most >= len(rows):
        return rows
    return rows.shuffle(seed=seed).select(range(most))
