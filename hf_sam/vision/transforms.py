"""Image transforms for training and evaluation, built from timm's."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, Compose, RandomCrop, Resize

from .classifier import SQUASHED
from .dataset import Transform

POLICIES = ("original", "v0", "3a", "rand", "augmix")  # first parts of timm's policy names


def build_transforms(
    data_config: Mapping[str, Any],
    *,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    horizontal_flip: float = 0.5,
    auto_augment: str | None = None,
    crop_padding: int | None = None,
    cutout: int | None = None,
    squash: bool = False,
) -> tuple[Transform, Transform]:
    """Build the training and the evaluation transform from a model's own data config.

    Args:
        data_config: `input_size` (3, height, width), `mean`, `std`, `interpolation`,
            `crop_pct`, `crop_mode`.
        crop_scale: Smallest and largest fraction of the image's area that a random resized crop
            covers; its aspect ratio is 3/4 to 4/3. The default is the paper's for ImageNet.
        horizontal_flip: Probability of a flip.
        auto_augment: A policy: `cifar10` (arXiv 1805.09501, of that data set), or timm's name of
            one: `original` for ImageNet's AutoAugment, `rand-m9-mstd0.5` for RandAugment.
        crop_padding: Resize to `input_size`, pad by this many pixels and crop, in place of the
            resized crop; `crop_scale` is not used then.
        cutout: Side in pixels of a square that is blanked at the end (arXiv 1708.04552).
        squash: Resize whole images to a square, so that evaluation cuts nothing off. A resized crop
            is then taken from that square, so its aspect ratio in the original image differs.

    Returns:
        The training transform (crop, flip, policy, cutout) and the evaluation transform (resize,
        centre crop). Both normalise.
    """
    if squash:
        data_config = {**data_config, **SQUASHED}
    shared = {k: data_config[k] for k in ("input_size", "mean", "std", "interpolation")}
    is_cifar = auto_augment == "cifar10"
    if not is_cifar:
        _require_policy(auto_augment)
    crop_and_flip, augment, to_tensor = create_transform(
        **shared,
        is_training=True,
        scale=crop_scale,
        hflip=horizontal_flip,
        auto_augment=None if is_cifar else auto_augment,
        color_jitter=None,
        separate=True,
    )
    crop = crop_and_flip.transforms[0]
    if crop_padding is not None:
        padded = RandomCrop(data_config["input_size"][1:], padding=crop_padding)
        crop_and_flip.transforms[0] = Compose([resize_whole(data_config), padded])
    elif squash:
        squashed = SquashedCrop(crop.size, crop.scale, crop.ratio, data_config["interpolation"])
        crop_and_flip.transforms[0] = squashed
    if is_cifar:
        augment = AutoAugment(AutoAugmentPolicy.CIFAR10)
    stages = [crop_and_flip, augment, to_tensor]
    if cutout is not None:
        stages.append(partial(blank_square, side=cutout))
    return Compose(stages), create_transform(
        **shared, crop_pct=data_config["crop_pct"], crop_mode=data_config["crop_mode"]
    )


def _require_policy(name: str | None) -> None:
    """Raise a ValueError for a name that timm would misread, or fail at during training."""
    if name is None:
        return
    try:
        if not name.startswith(POLICIES):
            raise ValueError("timm would take it for RandAugment")
        create_transform(1, is_training=True, auto_augment=name)
    except (AssertionError, LookupError, ValueError) as error:
        raise ValueError(
            f"`auto_augment` must be cifar10 or a policy of timm ({', '.join(POLICIES)}), got "
            f"{name!r}: rand-m9-mstd0.5 is usual."
        ) from error


def resize_whole(data_config: Mapping[str, Any]) -> Resize:
    """Return the resize of a whole image to `input_size`, with which padded crops begin."""
    interpolation = str_to_interp_mode(data_config["interpolation"])
    return Resize(data_config["input_size"][1:], interpolation)


class SquashedCrop(RandomResizedCropAndInterpolation):
    """timm's random resized crop, as if the image had been resized to a square before.

    The crop is cut out of the original image, so that it is resampled only once.
    """

    @staticmethod
    def get_params(
        img: Image, scale: tuple[float, float], ratio: tuple[float, float]
    ) -> tuple[int, int, int, int]:
        """Return top, left, height and width of the crop."""
        shape = img.width / img.height
        return RandomResizedCropAndInterpolation.get_params(
            img, scale, (ratio[0] * shape, ratio[1] * shape)
        )


def blank_square(image: Tensor, *, side: int) -> Tensor:
    """Set a random square to 0, the mean; its centre is in the image, a part may be outside.

    Args:
        image: (3, height, width), normalised.
        side: In pixels.

    Returns:
        A copy with the square blanked (arXiv 1708.04552, section 3.2).
    """
    rows, columns = (
        slice(max(centre - side // 2, 0), centre - side // 2 + side)
        for centre in (int(torch.randint(length, ())) for length in image.shape[1:])
    )
    image = image.clone()
    image[:, rows, columns] = 0
    return image


def soft_cross_entropy(
    outputs: Any,
    labels: Tensor,
    *,
    num_items_in_batch: Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the cross-entropy with integer labels or class probabilities, for the Trainer.

    Args:
        outputs: Model output with `logits` (N, classes).
        labels: (N,) integers or (N, classes) probabilities.
        num_items_in_batch: The Trainer's count of label entries in the window; None for the mean
            over `labels`.
        label_smoothing: Fraction of the label's probability that is spread over all classes.

    Returns:
        The loss of shape (): the mean over the window's examples.
    """
    total = F.cross_entropy(
        outputs.logits, labels, reduction="sum", label_smoothing=label_smoothing
    )
    if num_items_in_batch is None:
        return total / len(labels)
    return total * labels[0].numel() / torch.as_tensor(num_items_in_batch, device=total.device)
