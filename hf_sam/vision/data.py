"""Image data sets from the Hub, parquet files, image folders or scikit-learn, in one format."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, DatasetDict, Image, Value
from datasets.exceptions import DatasetsError
from huggingface_hub import constants
from PIL.Image import fromarray
from transformers.utils import logging

from .decoding import first_line
from .folders import has_images, load_image_folder
from .network import hub_is_reachable, offline
from .parquet import load_parquet, parquet_files

logger = logging.get_logger(__name__)

EVAL_SPLITS = ("test", "validation", "valid", "val", "eval", "dev")  # in order of preference


@dataclass(frozen=True)
class Splits:
    """The training and the evaluation split.

    Both have the columns `image`, `label` (an integer) and `index` (of the row in its split).
    """

    train: datasets.Dataset
    eval: datasets.Dataset
    label_names: list[str]  # (classes,) by integer label
    eval_split: str  # the name of the evaluation split


def load_hub(
    hub_id: str, *, revision: str | None = None, data_files: Mapping[str, str] | None = None
) -> DatasetDict:
    """Load a data set that the user has named from the Hub or its local cache.

    Args:
        hub_id: The repository, "owner/name".
        revision: Branch, tag or commit.
        data_files: Files by split, if only a part of the repository is to be loaded.

    Returns:
        The data set's splits.

    Raises:
        ValueError: If it cannot be reached or does not exist; names the local alternatives.
    """
    if Path(hub_id).exists():  # load_dataset would read that instead
        raise ValueError(
            f"data set `{hub_id}` of the Hub must not be the name of a file here: for the file use "
            f"`--data_dir {hub_id}`, for the Hub another working directory."
        )
    is_cut_off = not (constants.is_offline_mode() or hub_is_reachable())
    try:
        with offline() if is_cut_off else nullcontext():
            return datasets.load_dataset(hub_id, revision=revision, data_files=data_files)
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        reason = first_line(error).rstrip(".")
        if is_cut_off:
            reason = f"{constants.ENDPOINT} cannot be reached, and it is not in the cache"
        raise ValueError(
            f"data set `{hub_id}` cannot be loaded from the Hub: {reason}. "
            "Without a network use `--data_dir DIR` (parquet files or an image folder), or "
            "`--dataset digits`, which is bundled."
        ) from error


def load_local(data_dir: Path, splits: Sequence[str] = ()) -> DatasetDict:
    """Load parquet files or an image folder; nothing is downloaded.

    Parquet files, or the folders they are in, are named for their split: `train.parquet`, or
    `train-00000-of-00002.parquet`. An image folder is `DIR/train/<class>/<image>` and the same for
    the other splits, or `DIR/<class>/<image>`, which becomes `train`. The name of a file or folder
    must be that of a split: train or training; test, testing, eval or evaluation; validation,
    valid, val or dev.

    Args:
        data_dir: The folder.
        splits: Further names of splits, for files or folders with these names.

    Returns:
        The data set's splits.

    Raises:
        ValueError: If there is no such folder, or it has no images.
    """
    if not data_dir.is_dir():
        raise ValueError(f"`--data_dir` must be a folder, got {str(data_dir)!r}: check the path.")
    data_dir = data_dir.absolute()
    try:
        files = parquet_files(data_dir, splits)
        if not files:
            return load_image_folder(data_dir, splits)
        if has_images(data_dir):
            logger.warning(f"{data_dir}: parquet files are read, the image files beside them not")
        return load_parquet(files)
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        reason = str(error) if type(error) is ValueError else first_line(error)
        raise ValueError(
            f"`--data_dir` must hold parquet files (`train.parquet`) or an image folder with a "
            f"folder for each class (`train/<class>/<image>`), got {str(data_dir)!r}: {reason}"
        ) from error


def load_digits() -> DatasetDict:
    """Load scikit-learn's 1,797 scans of handwritten digits, 8x8 pixels; needs no network.

    Returns:
        `train` (1,437) and `test` (360), stratified by class, always the same.
    """
    from sklearn.datasets import load_digits as load_scans
    from sklearn.model_selection import train_test_split

    scans = load_scans()
    features = datasets.Features(
        image=Image(), label=ClassLabel(names=[str(name) for name in scans.target_names])
    )
    pixels = (scans.images * (255 / 16)).astype("uint8")  # (N, 8, 8); the scans count to 16
    images = [fromarray(scan) for scan in pixels]
    parts = train_test_split(
        range(len(images)), test_size=360, random_state=0, stratify=scans.target
    )
    return DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"image": [images[i] for i in part], "label": scans.target[part]}, features=features
            )
            for split, part in zip(("train", "test"), parts, strict=True)
        }
    )


def select_split(splits: DatasetDict, name: str) -> datasets.Dataset:
    """Return one split, or several joined: "train+validation".

    Raises:
        ValueError: If there is no such split (lists the existing ones), or one is named twice.
    """
    names = name.split("+")
    if len(set(names)) < len(names):
        raise ValueError(f"a split must be named once, got {name!r}: its images would count twice.")
    missing = [part for part in names if part not in splits]
    if missing:
        raise ValueError(
            f"split `{missing[0]}` is not in the data, which has: {', '.join(splits)}. "
            "Pass `--train_split` and `--eval_split`, or split off training images to measure on: "
            "`--eval_share 0.1`."
        )
    parts = [splits[part] for part in names]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(_with_same_classes(parts))


def _with_same_classes(parts: list[datasets.Dataset]) -> list[datasets.Dataset]:
    """Give all parts the union of their class labels, without which they cannot be concatenated."""
    for column, feature in parts[0].features.items():
        kinds = [part.features.get(column) for part in parts]
        if all(isinstance(kind, ClassLabel) for kind in kinds) and kinds != [feature] * len(kinds):
            names = list(dict.fromkeys(name for kind in kinds for name in kind.names))
            parts = [_renumbered(part, column, names) for part in parts]
    return parts


def _renumbered(rows: datasets.Dataset, column: str, names: list[str]) -> datasets.Dataset:
    codes: dict[str | int | None, int] = {name: code for code, name in enumerate(names)}
    labels = [codes.get(name) for name in _labels(rows, column)]
    return rows.remove_columns(column).add_column(column, labels, feature=ClassLabel(names=names))


def find_column(rows: datasets.Dataset, column: str | None, *, kind: str) -> str:
    """Return the column to use: the named one, or the only one of its type.

    Args:
        rows: The data.
        column: The user's or the task's choice; None to search.
        kind: "image" or "label"; also names the option in the error message.

    Raises:
        ValueError: If there is no such column (lists the existing ones), or images cannot be read
            from it.
    """
    feature = {"image": Image, "label": ClassLabel}[kind]
    found = [name for name, value in rows.features.items() if isinstance(value, feature)]
    column = column or (found[0] if len(found) == 1 else kind)
    if column not in rows.column_names:
        raise ValueError(
            f"{kind} column `{column}` is not in the data, which has: "
            f"{', '.join(rows.column_names)}. Pass `--{kind}_column`."
        )
    if kind == "image" and len(rows):
        try:
            rows.select([0]).cast_column(column, Image(decode=False))
        except (NotImplementedError, TypeError, ValueError) as error:  # of pyarrow
            raise ValueError(
                f"image column `{column}` must hold images, or the paths of some, got "
                f"{rows.features[column]}: pass another `--image_column`."
            ) from error
    return column


def with_class_labels(
    train: datasets.Dataset,
    evaluation: datasets.Dataset,
    *,
    image_column: str,
    label_column: str,
    eval_split: str,
) -> Splits:
    """Convert labels of any type (ClassLabel, string, integer) to integers from 0.

    Args:
        train: Defines the classes.
        evaluation: Must have no other classes.
        image_column: Column of the images, in both.
        label_column: Column of the labels, in both.
        eval_split: The name of the split of `evaluation`.

    Returns:
        Both splits, and the names of the classes.

    Raises:
        ValueError: If a label is missing, one of `evaluation` does not occur in `train`, or there
            are fewer than two classes.
    """
    feature = train.features[label_column]
    rows = {"training": train, "evaluation": evaluation}
    labels = {split: _labels(of_split, label_column) for split, of_split in rows.items()}
    if isinstance(feature, ClassLabel):
        classes = feature.names
    else:
        classes = sorted({label for label in labels["training"] if label is not None})
    codes = {label: code for code, label in enumerate(classes)}
    trained = set(labels["training"]) & set(codes)
    for split, given in labels.items():
        if unknown := sorted({str(label) for label in given if label not in trained}):
            raise ValueError(
                f"the {split} labels must be classes of the training split, got "
                f"{', '.join(unknown[:5])}: check `--label_column` and the splits."
                + (" None stands for a missing or negative label." if "None" in unknown else "")
            )
    if len(classes) < 2:
        raise ValueError(f"the data must have two classes or more, got {classes}.")
    coded = {split: [codes[label] for label in given] for split, given in labels.items()}
    return Splits(
        train=_as_rows(train, image_column, coded["training"]),
        eval=_as_rows(evaluation, image_column, coded["evaluation"]),
        label_names=[str(name) for name in classes],
        eval_split=eval_split,
    )


def _as_rows(rows: datasets.Dataset, image_column: str, labels: list[int]) -> datasets.Dataset:
    """Return the columns of `Splits`."""
    images = rows.select_columns(image_column).rename_columns({image_column: "image"})
    return images.add_column("label", labels, feature=Value("int64")).add_column(
        "index", list(range(len(rows))), feature=Value("int64")
    )


def _labels(rows: datasets.Dataset, column: str) -> list[str | int | None]:
    """Return a column's labels; class labels by name, as splits may number them differently."""
    feature, values = rows.features[column], list(rows[column])
    if isinstance(feature, ClassLabel):
        return [None if v is None or v < 0 else feature.int2str(v) for v in values]
    if not isinstance(feature, Value):
        raise ValueError(
            f"`--label_column` must hold one label an image, got `{column}` of {feature}."
        )
    return [_label(value, column) for value in values]


def _label(value: Any, column: str) -> str | int | None:
    """Return a label; None for one that is missing, as pandas writes it too."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if not value.is_integer():
            raise ValueError(
                f"`--label_column` must hold class labels, strings or integers, got {value} in "
                f"`{column}`."
            )
        value = int(value)
    return None if isinstance(value, int) and value < 0 else value
