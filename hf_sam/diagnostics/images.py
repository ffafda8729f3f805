"""Loading of the classifiers and images that the command measures."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..reporting.json_files import read_json
from ..vision import (
    EVAL_SPLITS,
    Classifier,
    ImageDataset,
    ModelSource,
    Splits,
    build_transforms,
    find_column,
    load_classifier,
    load_digits,
    load_hub,
    load_local,
    select_split,
    with_class_labels,
)
from .report import require_shown

RECORD, CONFIG = "run.json", "config.json"  # files of a run of hf-sam finetune


@dataclass(frozen=True)
class Trained:
    """A trained classifier, and the record of its training."""

    classifier: Classifier
    run: Mapping[str, Any]  # empty without a record


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of the tensors' names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def load_images(
    data: str,
    *,
    split: str,
    eval_split: str | None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Splits:
    """Load the images for the sharpness and those for the error.

    Args:
        data: `digits`, a folder of parquet files or images, or `owner/name` on the Hub.
        split: Split for the sharpness.
        eval_split: Split for the error; None for the test or validation split.
        image_column: Column of the images; None to search for it.
        label_column: Column of the labels; None to search for it.

    Raises:
        ValueError: If they cannot be loaded.
    """
    if data == "digits":
        found = load_digits()
    elif Path(data).exists() or data.count("/") != 1 or data.startswith("."):
        asked = [name for name in (split, eval_split) if name]
        found = load_local(Path(data), "+".join(asked).split("+"))
    else:
        found = load_hub(data)
    eval_split = eval_split or next((name for name in EVAL_SPLITS if name in found), split)
    rows, evaluation = select_split(found, split), select_split(found, eval_split)
    return with_class_labels(
        rows,
        evaluation,
        image_column=find_column(rows, image_column, kind="image"),
        label_column=find_column(rows, label_column, kind="label"),
        eval_split=eval_split,
    )


def load_trained(name: str, label_names: Sequence[str]) -> Trained:
    """Load a classifier that was trained on these labels.

    Args:
        name: A folder, or an image classifier on the Hub.
        label_names: (classes,) the names of the data's classes.

    Raises:
        ValueError: If it cannot be loaded, or was trained on other labels.
    """
    if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/"))):
        raise ValueError(
            f"the model must be a folder that a classifier was saved to, or owner/name on the Hub, "
            f"got {name!r}: check the path."
        )
    run = _record_of(Path(name))
    classifier = load_classifier(ModelSource(name), label_names)
    if classifier.report.head_drawn_anew or classifier.report.missing:
        raise ValueError(
            f"`{name}` must be a classifier of the {len(label_names)} classes of the data, got "
            f"{classifier.report}: measure it on the data that it was trained on."
        )
    return Trained(classifier, run)


def _record_of(folder: Path) -> Mapping[str, Any]:
    """Return the record of a model's training, empty where there is none.

    Raises:
        ValueError: If it, or the model's configuration, is damaged.
    """
    if (config := folder / CONFIG).is_file():
        read_json(config, Mapping[str, Any], remedy="save the model to that folder again")
    record = folder / RECORD
    if not (record.exists() or record.is_symlink()):  # a broken link counts as damaged
        return {}
    remedy = "restore it, or remove it: the report says nothing of the training then"
    return read_json(record, Mapping[str, Any], remedy=remedy, check=require_shown)


def sample(rows: datasets.Dataset, most: int | None, seed: int) -> datasets.Dataset:
    """Return a random sample of at most `most` rows; None returns all, in order.

    Raises:
        ValueError: If `most` is below 1.
    """
    if most is None:
        return rows
    if most < 1:
        raise ValueError(f"`--examples` and `--max_eval_samples` must be >= 1, got {most}.")
    return rows.shuffle(seed=seed).select(range(min(most, len(rows))))


def batches_of(
    rows: datasets.Dataset, trained: Trained, batch_size: int, *, split: str
) -> DataLoader[Any]:
    """Return batches of images with the classifier's evaluation transform.

    Raises:
        ValueError: If a batch would be empty.
    """
    if batch_size < 1:
        raise ValueError(f"`--batch_size` must be >= 1, got {batch_size}.")
    _, transform = build_transforms(trained.classifier.data_config)
    return DataLoader(ImageDataset(rows, transform, split=split), batch_size=batch_size)


@torch.no_grad()
def top1_error(model: PreTrainedModel, batches: DataLoader[Any]) -> float:
    """Return the share of misclassified images, in percent."""
    was_training, wrong, seen = model.training, 0, 0
    model.eval()
    for batch in tqdm(batches, desc="error"):
        logits = model(pixel_values=batch["pixel_values"].to(model.device)).logits
        wrong += int((logits.argmax(dim=-1).cpu() != batch["labels"]).sum())
        seen += len(logits)
    model.train(was_training)
    return 100.0 * wrong / seen
