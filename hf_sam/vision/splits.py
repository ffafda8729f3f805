"""The training and the evaluation split of a data set, selected alike by every command."""

from dataclasses import replace

from datasets import DatasetDict

from .data import Splits, find_column, select_split, with_class_labels
from .dataset import without_bad_images
from .decoding import MAX_IMAGE_PIXELS
from .sampling import split_off
from .tasks import Task


def select_splits(
    found: DatasetDict,
    task: Task,
    *,
    train_split: str,
    eval_split: str | None,
    eval_share: float | None = None,
    skip_bad_images: bool = False,
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> Splits:
    """Select both splits, with integer labels.

    Args:
        found: All splits of the data set.
        task: Names the columns; those it leaves open are searched for.
        train_split: The split to train on.
        eval_split: The split to measure on; None for the training images.
        eval_share: The share of the training images that is split off, to be measured on; with
            `eval_split=None`.
        skip_bad_images: Leave out images that cannot be decoded.
        max_pixels: Larger ones are left out with them.

    Raises:
        ValueError: If a split or a column is missing, or the labels do not fit.
    """
    train = select_split(found, train_split)
    evaluation = train if eval_split is None else select_split(found, eval_split)
    columns = {
        f"{kind}_column": find_column(evaluation, find_column(train, column, kind=kind), kind=kind)
        for kind, column in (("image", task.image_column), ("label", task.label_column))
    }
    name = eval_split or f"{train_split} (split off)"
    splits = with_class_labels(train, evaluation, eval_split=name, **columns)
    train, evaluation = splits.train, splits.eval
    if skip_bad_images:
        train = without_bad_images(train, train_split, max_pixels=max_pixels)
        if eval_split is not None:
            evaluation = without_bad_images(evaluation, eval_split, max_pixels=max_pixels)
    if eval_share is not None:
        train, evaluation = split_off(train, eval_share, option="eval_share", seed=0)
    return replace(splits, train=train, eval=evaluation)
