"""The factor by which the Trainer scales a loss before backward, to remove it from norms."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from .window import Window


def loss_scale(trainer: Trainer, window: Window) -> Tensor | float:
    """Return the factor by which the mean loss of the group that shares a perturbation is scaled.

    The cases are those in which the Trainer's training step divides a loss, or scales it for fp16.

    Args:
        trainer: The Trainer, whose settings decide.
        window: The window; its `group` has had its clean passes.

    Returns:
        A number, or a scalar of shape () on the device.
    """
    scale = _share_of_window(trainer, window)
    scaler = trainer.accelerator.scaler
    if scaler is None:
        return scale
    return scale * scaler.scale(torch.ones((), device=trainer.args.device))


def _share_of_window(trainer: Trainer, window: Window) -> Tensor | float:
    group, count = window.group, window.group[0].num_items_in_batch
    said = getattr(trainer, "loss_is_scaled_for_ga", None)  # unknown to transformers 5.17
    counted = trainer.model_accepts_loss_kwargs and count is not None
    is_scaled = counted or trainer.compute_loss_func is not None if said is None else said
    if not is_scaled or (said and count is None):
        return len(group) / window.length
    if count is None or not all("labels" in micro_batch.inputs for micro_batch in group):
        return float(len(group))  # of means, which compute_loss_func has not divided
    if window.scope == "global":
        return 1.0
    counts = [count_items(trainer, micro_batch.inputs) for micro_batch in group]
    ranks = trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1
    # a group without labels has no gradient anyway
    return torch.stack(counts).sum().clamp(min=1) * ranks / count


def count_items(trainer: Trainer, inputs: Mapping[str, Any]) -> Tensor:
    """Count the label items of a micro-batch as the Trainer does for a window, of shape ()."""
    labels = inputs.get("shift_labels")
    if labels is None:
        labels = inputs["labels"][..., 1:] if trainer._loss_shifts_labels else inputs["labels"]
    return labels.ne(-100).sum()
