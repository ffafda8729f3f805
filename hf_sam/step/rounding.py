"""Checks that enough of a perturbation survives rounding to the weights' dtype."""

from torch import Tensor
from transformers.utils import logging

WARN_BELOW, STOP_BELOW = 0.9, 0.5  # norm and cosine of the rounded perturbation

logger = logging.get_logger(__name__)


def require_fidelity(of_ranks: Tensor, *, allowed: bool) -> None:
    """Warn if rounding removed much of a perturbation, and raise if it removed most.

    Args:
        of_ranks: Of shape (ranks, 2), from `perturbation_fidelity`; the worst rank counts, so that
            all ranks stop or none.
        allowed: Whether to continue anyway (`allow_rounded_perturbation`).

    Raises:
        ValueError: If norm or cosine is below `STOP_BELOW`, unless `allowed`.
    """
    worst = of_ranks[of_ranks.min(dim=1).values.argmin()].tolist()
    if min(worst) >= WARN_BELOW:
        return
    message = (
        "The perturbation must survive rounding to the weights' dtype, got "
        f"{worst[0]:.0%} of its norm at a cosine of {worst[1]:.2f} to its direction: load the "
        "model in float32 (`dtype=torch.float32`) and compute in bfloat16 by `bf16=True`"
    )
    if min(worst) < STOP_BELOW and not allowed:
        raise ValueError(f"{message}, or set `allow_rounded_perturbation=True` to train on.")
    logger.warning(f"{message}.")
