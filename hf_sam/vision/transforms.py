"""From an image to what the network sees, by timm's transforms."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import create_transform
from torch import Tensor

from .dataset import Transform


def build_transforms(
    data_config: Mapping[str, Any],
    *,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    horizontal_flip: float = 0.5,
    auto_augment: str | None = None,
) -> tuple[Transform, Transform]:
    """Build the training and the evaluation transform from a model's own data config.

    Args:
        data_config: `input_size` (3, height, width), `mean`, `std`, `interpolation`,
            `crop_pct`, `crop_mode`.
        crop_scale: Share of the image's area that a random resized crop covers, least and most;
            the sides' ratio is 3/4 to 4/3. The default is the ImageNet preprocessing of the paper.
        horizontal_flip: Probability of a flip.
        auto_augment: timm's name of a policy: `original` for AutoAugment, `rand-m9-mstd0.5` for
            RandAugment.

    Returns:
        Random resized crop, flip and policy; and resize and centre crop. Both normalise.
    """
    shared = {k: data_config[k] for k in ("input_size", "mean", "std", "interpolation")}
    policies = ("original", "v0", "3a", "rand", "augmix")
    if auto_augment is not None and not auto_augment.startswith(policies):
        raise ValueError(
            f"`auto_augment` must be a policy of timm ({', '.join(policies)}), got "
            f"{auto_augment!r}: rand-m9-mstd0.5 is usual."
        )
    train = create_transform(
        **shared,
        is_training=True,
        scale=crop_scale,
        hflip=horizontal_flip,
        auto_augment=auto_augment,
        color_jitter=None,
    )
    return train, create_transform(
        **shared, crop_pct=data_config["crop_pct"], crop_mode=data_config["crop_mode"]
    )


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
        label_smoothing: Share of the label's mass that is spread over all classes.

    Returns:
        The loss of shape (): the mean over the window's examples.
    """
    total = F.cross_entropy(
        outputs.logits, labels, reduction="sum", label_smoothing=label_smoothing
    )
    if num_items_in_batch is None:
        return total / len(labels)
    return total * labels[0].numel() / torch.as_tensor(num_items_in_batch, device=total.device)
