"""Loading of the images that the command measures."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..vision import (
    EVAL_SPLITS,
    MAX_IMAGE_PIXELS,
    TASKS,
    ImageDataset,
    Splits,
    Task,
    build_transforms,
    load_hub,
    load_local,
    load_task,
    select_splits,
)
from .trained import Trained


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of the tensors' names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of(rows: datasets.Dataset) -> str:
    """Return a hash of images, as they are stored, and of their labels."""
    digest = hashlib.sha256()
    for row in rows.cast_column("image", Image(decode=False)):
        digest.update(_stored(row["image"] or {}))
        digest.update(f"{row['index']} {row['label']} ".encode())
    return digest.hexdigest()


def _stored(encoded: Mapping[str, Any]) -> bytes:
    """Return the bytes of an image as datasets stores it; none where decoding will fail."""
    stored, path = encoded.get("bytes"), encoded.get("path")
    if stored is None and path is not None and Path(path).is_file():
        return Path(path).read_bytes()
    return stored or b""


def known_task(data: str) -> Task | None:
    """Return the known data set of a name; None for another, and for a folder that is called so."""
    return None if data != "digits" and Path(data).is_dir() else TASKS.get(data)


def load_images(
    data: str,
    *,
    split: str,
    eval_split: str | None = None,
    eval_share: float | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    skip_bad_images: bool = False,
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> Splits:
    """Load the images for the sharpness and those for the error.

    Args:
        data: A known data set, a folder of parquet files or images, or `owner/name` on the Hub.
        split: Split for the sharpness.
        eval_split: Split for the error; None for the test or validation split.
        eval_share: The share of `split` that training left out, as `hf-sam finetune` draws it.
        image_column: Column of the images; None to search for it.
        label_column: Column of the labels; None to search for it.
        skip_bad_images: Leave out images that cannot be decoded.
        max_pixels: Larger ones are left out with them.

    Raises:
        ValueError: If they cannot be loaded, or there are none for the error.
    """
    if eval_share is not None and not 0 < eval_share < 1:
        raise ValueError(f"`--eval_share` must be a share, 0 < eval_share < 1, got {eval_share}.")
    if eval_share is not None and eval_split is not None:
        raise ValueError("`--eval_share` and `--eval_split` exclude each other: leave one out.")
    task = known_task(data) or Task(data, eval_split=None, image_column=None, label_column=None)
    task = replace(
        task,
        image_column=image_column or task.image_column,
        label_column=label_column or task.label_column,
    )
    found = _found(data, [name for name in (split, eval_split) if name])
    if eval_share is None:
        usual = (name for name in EVAL_SPLITS if name in found)
        eval_split = eval_split or task.eval_split or next(usual, None)
    if eval_split is None and eval_share is None:
        raise ValueError(
            f"the data must have images to measure the error on, got {', '.join(found)} only: give "
            "`--eval_share` as the training had it, or `--eval_split`."
        )
    return select_splits(
        found,
        task,
        train_split=split,
        eval_split=eval_split,
        eval_share=eval_share,
        skip_bad_images=skip_bad_images,
        max_pixels=max_pixels,
    )


def _found(data: str, asked: Sequence[str]) -> datasets.DatasetDict:
    """Load all splits of a known data set, of a folder, or of a name on the Hub."""
    known = known_task(data)
    if known is not None:
        return load_task(known)
    if Path(data).exists() or data.count("/") != 1 or data.startswith("."):
        return load_local(Path(data), "+".join(asked).split("+"))
    return load_hub(data)


def sample(
    rows: datasets.Dataset, most: int | None, seed: int, *, option: str = "examples"
) -> datasets.Dataset:
    """Return a random sample of at most `most` rows; None returns all, in order.

    `option` is the one that `most` comes from.

    Raises:
        ValueError: If `most` is below 1.
    """
    if most is None:
        return rows
    if most < 1:
        raise ValueError(f"`--{option}` must be >= 1, got {most}.")
    return rows.shuffle(seed=seed).select(range(min(most, len(rows))))


def batches_of(
    rows: datasets.Dataset,
    trained: Trained,
    batch_size: int,
    max_pixels: int = MAX_IMAGE_PIXELS,
    *,
    split: str,
) -> DataLoader[Any]:
    """Return batches of images with the classifier's evaluation transform.

    Raises:
        ValueError: If a batch would be empty.
    """
    if batch_size < 1:
        raise ValueError(f"`--batch_size` must be >= 1, got {batch_size}.")
    _, transform = build_transforms(trained.classifier.data_config)
    images = ImageDataset(rows, transform, split=split, max_pixels=max_pixels)
    return DataLoader(images, batch_size=batch_size)


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
