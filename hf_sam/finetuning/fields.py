"""The options of `hf-sam finetune` beyond the Trainer's: images, network and batch size."""

import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import SAMConfig
from ..vision import MAX_IMAGE_PIXELS, TASKS, require_rgb
from .suggestions import alike

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)  # owner/name


def option(text: str, default: Any = None) -> Any:
    """Declare an option with its help text."""
    return field(default=default, metadata={"help": text})


def is_path(dataset: str) -> bool:
    """Whether a data set's name is an existing path, or can only be meant as a path."""
    path = Path(dataset).expanduser()
    is_written_so = dataset.startswith(("~", ".")) or path.is_absolute() or "\\" in dataset
    return path.exists() or is_written_so or ("/" in dataset and not HUB_ID.fullmatch(dataset))


@dataclass
class DataOptions:
    """The data set, and how its images are cropped and augmented."""

    dataset: str | None = option(
        f"A known data set ({', '.join(TASKS)}), or owner/name of any other on the Hub. Unset, it "
        "is digits, or what --data_dir holds."
    )
    data_dir: str | None = option(
        "Read parquet files (train.parquet, ...) or an image folder (train/<class>/<image>) from "
        "here instead of the Hub. With --eval_share, <class>/<image> will do."
    )
    train_split: str | None = option(
        "Split to train on; join several as train+validation. In --data_dir, it may be any folder "
        "that holds the folders of the classes."
    )
    eval_split: str | None = option("Split to measure on; written as --train_split.")
    eval_share: float | None = option(
        "Split off this fraction of the training images to measure on, for data without an "
        "evaluation split. It is the same images with every seed."
    )
    image_column: str | None = option("Column of the images.")
    label_column: str | None = option("Column of the labels: class labels, strings or integers.")
    max_train_samples: int | None = option("Train on a random sample of this many images.")
    max_eval_samples: int | None = option(
        "Measure on a random sample of this many images, the same for all seeds."
    )
    skip_bad_images: bool = option(
        "Leave out images that cannot be decoded, and log how many.", False
    )
    max_image_pixels: int = option(
        "Reject images with more pixels than this (the default is where Pillow warns): a small "
        "file can decode to more than fits in memory.",
        MAX_IMAGE_PIXELS,
    )
    crop_scale: list[float] | None = option(
        "Smallest and largest fraction of the image's area that a training crop covers. Unset: "
        "0.08 1, the paper's ImageNet preprocessing (digits: 0.7 1)."
    )
    horizontal_flip: float | None = option(
        "Probability that a training image is mirrored. Unset: 0.5 (digits: 0)."
    )
    squash: bool = option(
        "Resize whole images of any shape to a square, distorting them, instead of cropping "
        "evaluation images; training crops are taken from the distorted image. For objects that "
        "fill the image, such as cropped cars.",
        False,
    )
    auto_augment: str | None = option(
        "Augmentation policy: cifar10 for AutoAugment's policy of that data set, or a name of "
        "timm's: original for AutoAugment's policy of ImageNet, rand-m9-mstd0.5 for RandAugment."
    )
    crop_padding: int | None = option(
        "Resize to the image size, pad by this many pixels and crop, instead of a resized crop: 4 "
        "is usual for CIFAR from scratch."
    )
    cutout: int | None = option(
        "Blank a square of this many pixels a side in each training image: 16 is usual for "
        "CIFAR-10."
    )
    mixup: float = option(
        "Mix pairs of images with a weight from Beta(mixup, mixup); 0 is off.", 0.0
    )
    label_noise: float = option(
        "Fraction of the training images that get a wrong label, drawn uniformly by --seed.", 0.0
    )
    holdout: float | None = option(
        "For choosing settings: measure on this fraction of the training images, held out of "
        "training by --seed, instead of the evaluation split. The paper holds out 0.1. With "
        "--label_noise its labels are noisy too, as those of a user's own held-out images would be."
    )
    cache_images: bool = option(
        "Decode each training image once and keep it in the memory of each worker process: in full "
        "size, as crops are cut from it, or with --crop_padding at the image size. The memory "
        "needed is estimated first; if it is not available, training does not start.",
        False,
    )

    @property
    def evaluates_on_train(self) -> bool:
        """Whether the images that are measured on are taken from the training split."""
        return self.holdout is not None or self.eval_share is not None

    def __post_init__(self) -> None:
        """Check what can be checked without the data."""
        self.data_dir = self.data_dir and os.path.expanduser(self.data_dir)  # of a file too
        unknown = None if self.dataset in TASKS else self.dataset
        if unknown is not None and not self.data_dir and is_path(unknown):
            raise ValueError(
                f"`dataset` must be a data set's name, got the path {self.dataset!r}: "
                f"pass `--data_dir {self.dataset}`."
            )
        if unknown is not None and ("/" not in unknown or self.data_dir):
            raise ValueError(
                f"`dataset` must be one of {', '.join(TASKS)}, or owner/name on the Hub, got "
                f"{self.dataset!r}"
                + (": leave it out beside `data_dir`." if self.data_dir else _meant(self.dataset))
            )
        if self.dataset == "digits" and self.data_dir:
            raise ValueError("`data_dir` must not go with digits, which is bundled: leave one out.")
        for name in ("max_train_samples", "max_eval_samples", "max_image_pixels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`{name}` must be >= 1, got {value}.")
        scale = self.crop_scale
        if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
            raise ValueError(
                f"`crop_scale` must be two shares, 0 < least <= most <= 1, got {scale}."
            )
        if not 0 <= (self.horizontal_flip or 0) <= 1:
            raise ValueError(f"`horizontal_flip` must be in [0, 1], got {self.horizontal_flip}.")
        if not (math.isfinite(self.mixup) and self.mixup >= 0):
            raise ValueError(f"`mixup` must be >= 0, got {self.mixup}: 0 is off, 0.2 usual.")
        if not 0 <= self.label_noise <= 1:
            raise ValueError(f"`label_noise` must be in [0, 1], got {self.label_noise}.")
        for name in ("eval_share", "holdout"):
            if (value := getattr(self, name)) is not None and not 0 < value < 1:
                raise ValueError(f"`{name}` must be a share, 0 < {name} < 1, got {value}.")
        if self.eval_share is not None and self.eval_split is not None:
            raise ValueError("`eval_share` and `eval_split` exclude each other: leave one out.")
        for name in ("crop_padding", "cutout"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`{name}` must be >= 1, got {value}: leave it out for none.")
        if self.crop_padding and self.crop_scale:
            raise ValueError("`crop_padding` and `crop_scale` exclude each other: leave one out.")


def _meant(dataset: str | None) -> str:
    found = alike(str(dataset), TASKS)
    return f": did you mean {' or '.join(found)}?" if found else "."


@dataclass
class BatchOptions:
    """The number of images of an optimizer step, and of those that share one perturbation."""

    batch_size: int | None = option(
        "Images of one optimizer step over all devices; sets the gradient accumulation. Unset: as "
        "the Trainer's own options say."
    )
    m: int | None = option(
        "m of m-sharpness: the number of images that share one perturbation, which is a device's "
        "micro-batch (--per_device_train_batch_size). The number of images of a step does not "
        "change. BatchNorm also uses batches of m, unless frozen (--freeze_batch_norm)."
    )

    def apply(self, args: SAMConfig) -> None:
        """Set micro-batch size and gradient accumulation.

        Raises:
            ValueError: If the batch is not a whole number of micro-batches on each device.
        """
        for name in ("batch_size", "m"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`{name}` must be >= 1, got {value}.")
        micro_batch = self.m or args.per_device_train_batch_size
        accumulation = args.gradient_accumulation_steps
        if self.batch_size is not None and accumulation != 1:
            raise ValueError(
                "`batch_size` and `gradient_accumulation_steps` exclude each other: leave one out."
            )
        scope = args.ascent_scope or args.chosen_method.scope
        if self.m is not None and args.rho > 0 and scope != "micro_batch":
            whose = "" if args.ascent_scope else f", which is that of {args.method}"
            raise ValueError(
                f"`m` goes with `ascent_scope` micro_batch, got {scope}{whose}: leave `m` out."
            )
        if self.m is not None and args.rho > 0 and _is_sharded(args):
            raise ValueError(
                f"`m` must be left out under FSDP and DeepSpeed, got {self.m}: they make one "
                "perturbation for all devices."
            )
        if self.batch_size is not None and args.deepspeed:
            raise ValueError(
                "`batch_size` comes too late for `deepspeed`, whose file has been filled in: give "
                "`per_device_train_batch_size` and `gradient_accumulation_steps`."
            )
        batch = self.batch_size or args.per_device_train_batch_size * accumulation * args.world_size
        if batch % (micro_batch * args.world_size):
            raise ValueError(
                f"`batch_size` must be a multiple of {micro_batch} images on each of "
                f"{args.world_size} devices, got {batch}: change `per_device_train_batch_size` "
                "or `m`."
            )
        args.per_device_train_batch_size = micro_batch
        args.gradient_accumulation_steps = batch // (micro_batch * args.world_size)


def _is_sharded(args: SAMConfig) -> bool:
    asked = (os.environ.get(f"ACCELERATE_USE_{name}", "") for name in ("FSDP", "DEEPSPEED"))
    return bool(args.fsdp or args.deepspeed) or "true" in asked


@dataclass
class ModelOptions:
    """The network and its weights."""

    model: str | None = option(
        "A timm name (resnet18, timm/resnet18.a1_in1k), an image classifier on the Hub, or a local "
        "folder. Unset: the data set's own."
    )
    weights: str | None = option(
        "Load this safetensors file instead of downloading weights. The head may be missing."
    )
    init_scratch: bool = option("Use no pretrained weights.", False)
    model_kwargs: str | None = option(
        'JSON arguments for timm.create_model: \'{"drop_path_rate": 0.1, "pad_type": "same"}\'.'
    )
    image_size: int | None = option("Height and width in pixels, instead of the model's own.")
    mean: list[float] | None = option("Mean of the normalisation, three values in [0, 1].")
    std: list[float] | None = option("Standard deviation of the normalisation, three values.")
    freeze_batch_norm: bool = option(
        "Use BatchNorm's running statistics in training too, as the paper's fine-tuning does.",
        False,
    )
    channels_last: bool = option(
        "Use the channels-last memory format, which is faster for convolutions on CPU and GPU; not "
        "under DeepSpeed, which cannot broadcast such weights.",
        True,
    )

    def __post_init__(self) -> None:
        """Check what can be checked without the model."""
        self.weights = self.weights and os.path.expanduser(self.weights)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and not (len(value) == 3 and all(map(math.isfinite, value))):
                raise ValueError(f"`{name}` must be three values (red, green, blue), got {value}.")
        if self.mean is not None and not 0 <= min(self.mean) <= max(self.mean) <= 1:
            raise ValueError(
                f"`mean` must be in [0, 1], got {self.mean}: divide values from 0 to 255 by 255."
            )
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"`std` must be > 0, got {self.std}.")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"`image_size` must be >= 1, got {self.image_size}.")
        self.parsed_kwargs()

    def parsed_kwargs(self) -> dict[str, Any]:
        """Return `model_kwargs` as a dictionary."""
        try:
            kwargs = json.loads(self.model_kwargs or "{}")
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"`model_kwargs` must be JSON, got {str(self.model_kwargs)[:200]!r}: {error}."
            ) from error
        if not isinstance(kwargs, dict):
            raise ValueError(
                f'`model_kwargs` must be a JSON object {{"name": value}}, got {kwargs}.'
            )
        require_rgb(kwargs.get("in_chans", 3))
        return kwargs
