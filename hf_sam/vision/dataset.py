"""The dataset of images that are decoded and transformed on access, and a filter of broken ones."""

import random
from collections.abc import Callable
from typing import Any

import datasets
import torch
from datasets import Image
from PIL.Image import Image as PILImage
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..step.replay import seeded
from .decoding import MAX_IMAGE_PIXELS, BadImageError, decode, name_of

logger = logging.get_logger(__name__)

Transform = Callable[[PILImage], Tensor]  # RGB image -> (3, height, width)


class ImageDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Decodes an image, converts it to RGB and transforms it when the Trainer asks for it.

    The random augmentation of an example depends on seed, epoch and index only: an interrupted run
    continues with the same crops, and runs that differ in other settings see the same ones.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        transform: Transform,
        *,
        split: str,
        seed: int = 0,
        mixup: float = 0.0,
        classes: int = 0,
        cache: bool = False,
        shrink: Callable[[PILImage], PILImage] | None = None,
        max_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        """Wrap rows as `Splits` has them.

        Args:
            rows: The examples, with `image`, `label` and `index`.
            transform: From an RGB image to (3, height, width).
            split: The split's name, for messages.
            seed: Of the random augmentation.
            mixup: If > 0, each image and its label are mixed with those of another example, by a
                weight from Beta(mixup, mixup) (arXiv 1710.09412).
            classes: Number of classes, for mixed labels.
            cache: Keep every image in memory once it is decoded (in each worker process).
            shrink: Applied to an image before it is cached: a resize that `transform` begins with,
                so that applying it again changes nothing.
            max_pixels: Largest number of pixels of an image.
        """
        self.rows = rows.cast_column("image", Image(decode=False))
        self.transform = transform
        self.split = split
        self.seed = seed
        self.mixup = mixup
        self.classes = classes
        self.shrink = shrink
        self.max_pixels = max_pixels
        self.decoded: dict[int, PILImage] | None = {} if cache else None
        self.labels: list[int] = list(rows["label"])
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
        return self.transform(self._image(index)), self.labels[index]

    def decoded_image(self, index: int) -> PILImage:
        """Return a decoded image, as it would be cached.

        Raises:
            BadImageError: If it cannot be decoded.
        """
        image = decode(self.rows[index], self.split, max_pixels=self.max_pixels)
        return image if self.shrink is None else self.shrink(image)

    def _image(self, index: int) -> PILImage:
        if self.decoded is None:
            return self.decoded_image(index)
        if index not in self.decoded:
            self.decoded[index] = self.decoded_image(index)
        return self.decoded[index]


class EpochOfData(TrainerCallback):
    """Tells a data set which epoch it is, so that its random crops differ between epochs."""

    def __init__(self, data: ImageDataset) -> None:
        """Store the data set to update."""
        self.data = data

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch, also after a resume in the middle of one."""
        self.data.epoch.fill_(int(state.epoch or 0))


def without_bad_images(
    rows: datasets.Dataset, split: str, *, max_pixels: int = MAX_IMAGE_PIXELS
) -> datasets.Dataset:
    """Leave out the images that cannot be decoded, and log which. Decodes every image once.

    Args:
        rows: The examples, with `image` and `index`.
        split: For the message.
        max_pixels: Larger images are left out too.
    """

    def decodes(row: dict[str, Any]) -> bool:
        try:
            decode(row, "", max_pixels=max_pixels)
        except BadImageError:
            return False
        return True

    raw = rows.cast_column("image", Image(decode=False))
    good = raw.filter(decodes, desc="Checking images")
    kept = set(good["index"])
    bad = [place for place, index in enumerate(rows["index"]) if index not in kept]
    names = [name_of(row) for row in raw.select(bad[:10])]
    logger.warning(
        f"{len(bad)} of {len(rows)} images of the {split} split cannot be decoded and are left out"
        + (f": {', '.join(names)}" if bad else "")
    )
    return good
