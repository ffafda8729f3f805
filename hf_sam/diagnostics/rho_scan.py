"""A scan over rho: the loss and the gradient after SAM's ascent with each, to help choose one."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from .batches import Part
from .directions import norm, wide
from .loss import LossFunction, model_loss
from .measuring import measuring
from .objective import Objective, Setup, Weights
from .sharpness import ascent_step

RHOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
ALIGNED = 0.7  # cosine of 45 degrees


@dataclass(frozen=True)
class RhoScan:
    """Results of a scan: means over batches, each with its own perturbation as in training."""

    setup: Setup
    rhos: NDArray[np.float64]  # (R,) L2 radius in parameter space, ascending
    perturbed_losses: NDArray[np.float64]  # (R,) after the ascent
    cosines: NDArray[np.float64]  # (R,) between the gradients at w and at w + epsilon
    recommended: float | None  # one of `rhos`
    reason: str

    def __post_init__(self) -> None:
        """Check that there is a loss and a cosine for each rho."""
        if not self.rhos.shape == self.perturbed_losses.shape == self.cosines.shape:
            raise ValueError("`perturbed_losses` and `cosines` must be one for each of `rhos`")


def rho_scan(
    model: nn.Module,
    batches: Iterable[Any],
    loss: LossFunction = model_loss,
    *,
    rhos: Sequence[float] = RHOS,
    adaptive: bool = False,
    max_batches: int | None = 8,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> RhoScan:
    """Measure the effect of SAM's ascent for each rho, and recommend one.

    Recommended is the largest rho up to which the gradient at w + epsilon stays within 45 degrees
    of that at w, on average: the descent still lowers the loss itself, and the ascent is as strong
    as that allows. It is a starting point for a comparison on held-out data.

    Args:
        model: Preferably after some training. Measured in the mode that `measuring` sets, and
            restored exactly.
        batches: A data loader of held-out data, with batches of the size that shares a perturbation
            in training (m).
        loss: The mean loss of a batch.
        rhos: Values to try.
        adaptive: Whether to scan ASAM's rho, which is about ten times larger.
        max_batches: Use the first so many batches; None for all.
        seed: Seed of the loader's order.
        dtype: To compute in; None for the weights' own.
        progress: Show a progress bar.

    Returns:
        The scan. Costs a forward-backward pass over the examples for each rho, one more, and a
        forward pass.

    Raises:
        ValueError: If a rho is not positive, or there is nothing to measure.
    """
    radii = np.unique(np.asarray(rhos, dtype=np.float64))
    if not len(radii) or not (np.isfinite(radii).all() and radii[0] > 0):
        raise ValueError(f"`rhos` must be numbers > 0, got {list(rhos)}.")
    with measuring(
        model, batches, loss, max_batches=max_batches, seed=seed, dtype=dtype
    ) as objective:
        bar = tqdm(objective.parts, desc="rho scan", disable=not progress)
        found = np.array([_of_batch(objective, part, radii, adaptive) for part in bar])  # (B, R, 2)
        weights = [part.examples for part in objective.parts]
        losses, cosines = np.average(found, axis=0, weights=weights).T
        recommended, reason = _recommend(radii, cosines)
        return RhoScan(objective.setup, radii, losses, cosines, recommended, reason)


def _of_batch(
    objective: Objective, part: Part, radii: NDArray[np.float64], adaptive: bool
) -> list[tuple[float, float]]:
    """Return loss and cosine after each ascent."""
    gradient = objective.gradient(objective.weights, [part])[1]
    found = []
    for rho in radii:
        step = ascent_step(objective, gradient, float(rho), adaptive=adaptive)
        loss, moved = objective.gradient(objective.moved(step), [part])
        found.append((loss, _cosine(gradient, moved)))
    return found


def _cosine(a: Weights, b: Weights) -> float:
    """Return the cosine between two gradients; nan if one is zero or not finite."""
    product = float(sum((wide(a[name]) * wide(b[name])).sum() for name in a))
    lengths = norm(a) * norm(b)
    return product / lengths if lengths else math.nan


def _recommend(
    radii: NDArray[np.float64], cosines: NDArray[np.float64]
) -> tuple[float | None, str]:
    if np.isnan(cosines[0]):
        return None, "a gradient is zero or not finite: there is nothing to ascend along."
    count = int(np.argmin(np.append(np.nan_to_num(cosines, nan=-1.0) >= ALIGNED, False)))
    if count == 0:
        return None, (
            f"already at rho {radii[0]:g} the gradient turns by {_degrees(cosines[0])}, more than "
            "45 degrees: scan smaller ones, or after more training."
        )
    best = float(radii[count - 1])
    reason = f"at rho {best:g} the gradient turns by {_degrees(cosines[count - 1])}"
    if count == len(radii):
        return best, f"{reason}, and no larger rho was tried: scan larger ones too."
    return best, (
        f"{reason}, at {radii[count]:g} by {_degrees(cosines[count])}: within 45 degrees a step "
        "against it still lowers the loss itself."
    )


def _degrees(cosine: float) -> str:
    if math.isnan(cosine):
        return "an angle that is not finite"
    return f"{math.degrees(math.acos(max(-1.0, min(1.0, cosine)))):.0f} degrees"
