"""Checks that enough of a perturbation survives rounding to the weights' dtype."""

import torch
from torch import Tensor
from transformers.utils import logging

WARN_BELOW, STOP_BELOW = 0.9, 0.5  # norm and cosine of the rounded perturbation

logger = logging.get_logger(__name__)


def require_fidelity(of_ranks: Tensor, *, remedy: str, allowed: bool, warns: bool) -> None:
    """Warn if rounding changes much of a perturbation, and raise if it changes most of it.

    Args:
        of_ranks: Of shape (ranks, 2), from `perturbation_fidelity`; the worst rank counts, so that
            all ranks stop or none. A norm too large is as wrong as one too small.
        remedy: What the user can do about it.
        allowed: Whether to continue anyway (`allow_rounded_perturbation`).
        warns: Whether to warn, which is done once in a training.

    Raises:
        ValueError: If norm, its inverse or cosine is below `STOP_BELOW`, unless `allowed`.
    """
    norm, cosine = of_ranks.unbind(dim=1)
    kept = torch.stack([norm, 1 / norm, cosine]).min(dim=0).values
    worst, least = of_ranks[kept.argmin()].tolist(), float(kept.min())
    if least >= WARN_BELOW:
        return
    message = (
        "The perturbation must survive rounding to the weights' dtype, got "
        f"{worst[0]:.0%} of its norm at a cosine of {worst[1]:.2f} to its direction: {remedy}"
    )
    if least < STOP_BELOW and not allowed:
        raise ValueError(f"{message}, or set `allow_rounded_perturbation=True` to train on.")
    if warns:
        logger.warning(f"{message}.")
