"""Images and labels from the Hub, from files, from folders or bundled, brought to one form."""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import ClassLabel, DatasetDict, Image
from PIL.Image import Image as PILImage
from PIL.Image import fromarray
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..replay import seeded

Transform = Callable[[PILImage], Tensor]  # RGB image -> (3, height, width)


class BadImageError(ValueError):
    """An image that cannot be decoded; the message names its split and index."""


@dataclass(frozen=True)
class Splits:
    """What to train on and what to measure on.

    Both have `image_column`, an integer `label` and the `index` of the row in its split.
    """

    train: datasets.Dataset
    eval: datasets.Dataset
    image_column: str
    label_names: list[str]  # (classes,) in the order of the integer labels
    eval_split: str  # the name of the split that is measured on


class ImageDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Decodes, converts to RGB and transforms one image at a time, as the Trainer asks for it.

    What is random about an example is a function of seed, epoch and index: an interrupted run goes
    on with the same crops, and runs that differ in anything else see the same ones.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        transform: Transform,
        *,
        image_column: str,
        split: str,
        seed: int = 0,
        mixup: float = 0.0,
        classes: int = 0,
    ) -> None:
        """Wrap rows as `Splits` has them.

        Args:
            rows: The examples, with `image_column`, `label` and `index`.
            transform: From an RGB image to (3, height, width).
            image_column: Where the images are.
            split: The split's name, for messages.
            seed: Of all that is random about the examples.
            mixup: If > 0, each image and its label are mixed with those of another example, by a
                weight from Beta(mixup, mixup) (arXiv 1710.09412).
            classes: Number of classes, for mixed labels.
        """
        self.rows = rows.cast_column(image_column, Image(decode=False))
        self.transform = transform
        self.image_column = image_column
        self.split = split
        self.seed = seed
        self.mixup = mixup
        self.classes = classes
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers see it change

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `pixel_values` (3, height, width) and `labels`: an integer, or (classes,) mixed.

        Raises:
            BadImageError: If the image cannot be decoded.
        """
        with seeded(self.seed, int(self.epoch), index):
            image, label = self._example(index)
            if self.mixup == 0:
                return {"pixel_values": image, "labels": label}
            weight = random.betavariate(self.mixup, self.mixup)
            other_image, other_label = self._example(random.randrange(len(self)))
            labels = torch.zeros(self.classes)
            labels[label] += weight
            labels[other_label] += 1 - weight
            return {"pixel_values": weight * image + (1 - weight) * other_image, "labels": labels}

    def _example(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        image = _decode(row[self.image_column], row["index"], self.split)
        return self.transform(image), row["label"]


class EpochOfData(TrainerCallback):
    """Tells a data set which epoch it is, so that its random crops differ between epochs."""

    def __init__(self, data: ImageDataset) -> None:
        """Remember the data set to tell."""
        self.data = data

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch; in a run that is resumed, that of the interruption."""
        self.data.epoch.fill_(int(state.epoch or 0))


def load_hub(
    hub_id: str, *, revision: str | None = None, data_files: Mapping[str, str] | None = None
) -> DatasetDict:
    """Load a data set from the Hub, which the user has asked for by name.

    Args:
        hub_id: The repository, "owner/name".
        revision: Branch, tag or commit.
        data_files: Files by split, where not all of the repository is meant.

    Returns:
        The data set's splits.

    Raises:
        ValueError: If it cannot be reached or does not exist; names the local alternatives.
    """
    try:
        return datasets.load_dataset(hub_id, revision=revision, data_files=data_files)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"data set `{hub_id}` cannot be loaded from the Hub: {_first_line(error)} "
            "Without a network use `--data_dir DIR` (parquet files or an image folder), or "
            "`--dataset digits`, which is bundled."
        ) from error


def load_local(data_dir: Path) -> DatasetDict:
    """Load parquet files or an image folder; nothing is fetched.

    Parquet files are named for their split: `train.parquet`, or `train-00000-of-00002.parquet`. An
    image folder is `DIR/train/<class>/<image>` and the same for the other splits.

    Args:
        data_dir: The folder.

    Returns:
        The data set's splits.

    Raises:
        ValueError: If there is no such folder, or no images are in it.
    """
    if not data_dir.is_dir():
        raise ValueError(f"`--data_dir` must be a folder, got {str(data_dir)!r}: check the path.")
    files = defaultdict(list)
    for path in sorted(data_dir.rglob("*.parquet")):
        files[path.stem.split("-")[0]].append(str(path))
    try:
        if files:
            return datasets.load_dataset("parquet", data_files=dict(files))
        return datasets.load_dataset("imagefolder", data_dir=str(data_dir), drop_labels=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"`--data_dir` must hold parquet files (`train.parquet`) or an image folder "
            f"(`train/<class>/<image>`), got {str(data_dir)!r}: {_first_line(error)}"
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
        ValueError: If there is no such split; lists those that are there.
    """
    missing = [part for part in name.split("+") if part not in splits]
    if missing:
        raise ValueError(
            f"split `{missing[0]}` is not in the data, which has: {', '.join(splits)}. "
            "Pass `--train_split` and `--eval_split`."
        )
    parts = [splits[part] for part in name.split("+")]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def find_column(rows: datasets.Dataset, column: str | None, *, kind: str) -> str:
    """Return the column to use: the one named, or the one that can only be meant.

    Args:
        rows: The data.
        column: The user's or the task's choice; None to look for it.
        kind: "image" or "label"; also the option to name in the message.

    Raises:
        ValueError: If there is no such column; lists those that are there.
    """
    feature = {"image": Image, "label": ClassLabel}[kind]
    found = [name for name, value in rows.features.items() if isinstance(value, feature)]
    column = column or (found[0] if len(found) == 1 else kind)
    if column not in rows.column_names:
        raise ValueError(
            f"{kind} column `{column}` is not in the data, which has: "
            f"{', '.join(rows.column_names)}. Pass `--{kind}_column`."
        )
    return column


def with_class_labels(
    train: datasets.Dataset,
    evaluation: datasets.Dataset,
    *,
    image_column: str,
    label_column: str,
    eval_split: str,
) -> Splits:
    """Bring labels of any type (ClassLabel, string, integer) to integers from 0 in column `label`.

    Args:
        train: Defines the classes.
        evaluation: Must have no others.
        image_column: Where the images are, in both.
        label_column: Where the labels are, in both.
        eval_split: The name of the split of `evaluation`.

    Returns:
        Both splits, and the names of the classes.

    Raises:
        ValueError: If a label is missing, or one of `evaluation` does not occur in `train`.
    """
    parts = [part.select_columns([image_column, label_column]) for part in (train, evaluation)]
    feature = train.features[label_column]
    if isinstance(feature, ClassLabel) and feature == evaluation.features[label_column]:
        names, codes = feature.names, {code: code for code in range(feature.num_classes)}
    else:
        classes = sorted(set(train[label_column]))
        names, codes = [str(name) for name in classes], {name: i for i, name in enumerate(classes)}
    coded = []
    for rows, split in zip(parts, ("training", "evaluation"), strict=True):
        labels = list(rows[label_column])
        unknown = sorted({str(label) for label in labels if label not in codes})
        if unknown:
            raise ValueError(
                f"the {split} labels must be classes of the training split, got "
                f"{', '.join(unknown[:5])}: check `--label_column` and the splits."
            )
        rows = rows.remove_columns(label_column)
        rows = rows.add_column("label", [codes[label] for label in labels])
        coded.append(rows.add_column("index", list(range(len(labels)))))
    return Splits(
        train=coded[0],
        eval=coded[1],
        image_column=image_column,
        label_names=names,
        eval_split=eval_split,
    )


def drop_bad_images(
    rows: datasets.Dataset, *, image_column: str
) -> tuple[datasets.Dataset, list[int]]:
    """Leave out the images that cannot be decoded. Decodes every image once.

    Args:
        rows: The examples, with `image_column` and `index`.
        image_column: Where the images are.

    Returns:
        The rows that are left, and the `index` of each that is not.
    """

    def decodes(row: dict[str, Any]) -> bool:
        try:
            _decode(row[image_column], row["index"], "")
        except BadImageError:
            return False
        return True

    raw = rows.cast_column(image_column, Image(decode=False))
    good = raw.filter(decodes, desc="Checking images")
    return good, sorted(set(rows["index"]) - set(good["index"]))


def _decode(encoded: dict[str, Any], index: int, split: str) -> PILImage:
    """Decode one image to RGB, as datasets does, orientation included."""
    try:
        image = Image().decode_example(encoded)
        if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8 instead of scaling
            image = fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")
    except Exception as error:  # Pillow raises errors of many unrelated types on broken files
        raise BadImageError(
            f"image {index} of the {split} split cannot be decoded ({_first_line(error)}): remove "
            "it, or pass `--skip_bad_images`."
        ) from error


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
