"""Sharpness: the rise of the loss near the weights, worst-case, average and m-sharpness."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ..ascent.perturbation import compute_perturbation
from ..reporting.interval import Interval
from .batches import groups_of
from .directions import gaussians, norm
from .loss import LossFunction, model_loss
from .measuring import measuring
from .objective import Objective, Setup, Weights


@dataclass(frozen=True)
class Sharpness:
    """Measured rises of the mean loss above its value at the weights."""

    setup: Setup
    rho: float  # L2 radius in parameter space
    worst_case: float  # after one ascent step of length rho along the gradient, as in SAM
    steps: int  # of projected ascent, after the first
    worst_case_steps: float  # largest rise after this step and up to `steps` more
    sigma: float  # standard deviation of the random directions, in each weight
    average: Interval  # over Gaussian directions
    adaptive_rho: float  # radius of the weights scaled by T, arXiv 2102.11600
    adaptive: float  # after one ascent step of ASAM
    by_m: dict[int, float]  # m: mean over groups of m examples, each with an ascent step of its own


def sharpness(
    model: nn.Module,
    batches: Iterable[Any],
    loss: LossFunction = model_loss,
    *,
    rho: float = 0.05,
    steps: int = 10,
    sigma: float = 0.01,
    directions: int = 10,
    adaptive_rho: float = 0.5,
    m: Sequence[int] = (),
    max_batches: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> Sharpness:
    """Measure how far the loss rises within a radius of the weights.

    Worst case: max of L(w + epsilon) - L(w) over ||epsilon|| <= rho (arXiv 2010.01412, equation 1),
    by one step along the gradient, and by projected ascent that continues from there: both are
    lower bounds, the second a closer one. Average: the mean of L(w + sigma z) - L(w) for standard
    normal z (arXiv 2206.06232, section 2), to second order sigma^2 trace(H) / 2; both z and -z are
    used, which keeps the mean and removes the slope from the variance.

    Args:
        model: Measured in the mode that `measuring` sets, and restored exactly.
        batches: A data loader.
        loss: The mean loss of a batch.
        rho: L2 radius in parameter space.
        steps: Steps of projected ascent after the first.
        sigma: Standard deviation of the random directions, in each weight.
        directions: Number of random directions for the average.
        adaptive_rho: Radius for ASAM's perturbation, with eta 0.01.
        m: Group sizes for which to measure m-sharpness (section 4.1).
        max_batches: Use the first so many batches; None for all.
        seed: Seed of the random directions and of the loader's order.
        dtype: To compute in; None for the weights' own.
        progress: Show a progress bar.

    Returns:
        The measurements. Costs, over the examples, 1 + steps forward-backward and 3 + 2 directions
        forward passes, and for each m a forward-backward and a forward pass.

    Raises:
        ValueError: If an argument is out of its range, or there is nothing to measure.
    """
    _require_valid(steps, directions, rho=rho, sigma=sigma, adaptive_rho=adaptive_rho)
    with measuring(
        model, batches, loss, max_batches=max_batches, seed=seed, dtype=dtype
    ) as objective:
        bar = partial(tqdm, disable=not progress)
        return _measured(
            objective, bar, rho=rho, steps=steps, sigma=sigma, directions=directions,
            adaptive_rho=adaptive_rho, m=m, seed=seed,
        )  # fmt: skip


def _measured(
    objective: Objective,
    bar: Callable[..., Iterable[Any]],
    *,
    rho: float,
    steps: int,
    sigma: float,
    directions: int,
    adaptive_rho: float,
    m: Sequence[int],
    seed: int,
) -> Sharpness:
    """Measure all of it, each part under a progress bar."""
    gradient = objective.gradient(objective.weights)[1]
    ascent = _projected_ascent(objective, gradient, rho, steps)
    found = list(bar(ascent, "worst case", 1 + steps))
    draws = islice(gaussians(objective.weights, seed=seed), directions)
    average = [mean_rise(objective, z, sigma) for z in bar(draws, "average", directions)]
    adaptive_step = ascent_step(objective, gradient, adaptive_rho, adaptive=True)
    return Sharpness(
        setup=objective.setup,
        rho=rho,
        worst_case=found[0],
        steps=steps,
        worst_case_steps=max(found),
        sigma=sigma,
        average=Interval.of(average),
        adaptive_rho=adaptive_rho,
        adaptive=rise(objective, adaptive_step),
        by_m={n: _m_sharpness(objective, n, rho) for n in bar(m, "m-sharpness")},
    )


def ascent_step(
    objective: Objective, gradient: Weights, rho: float, *, adaptive: bool = False
) -> Weights:
    """Return the perturbation that SAM, or ASAM, computes from a gradient.

    Args:
        objective: Its weights scale ASAM's perturbation.
        gradient: One tensor for each weight; not changed.
        rho: Radius of the perturbation.
        adaptive: Whether to scale by the weights.
    """
    copies = [g.clone() for g in gradient.values()]
    steps = compute_perturbation(objective.weights, copies, rho=rho, adaptive=adaptive)
    return {
        name: torch.zeros_like(objective.weights[name]) if step is None else step
        for name, step in zip(gradient, steps, strict=True)
    }


def rise(objective: Objective, direction: Weights, by: float = 1.0) -> float:
    """Return L(w + by * direction) - L(w), over all examples."""
    return objective.mean_loss(objective.moved(direction, by)) - objective.setup.loss


def mean_rise(objective: Objective, direction: Weights, by: float) -> float:
    """Return the mean of the rises along a direction and against it."""
    return (rise(objective, direction, by) + rise(objective, direction, -by)) / 2


def _require_valid(steps: int, directions: int, **radii: float) -> None:
    for name, value in radii.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"`{name}` must be > 0 and finite, got {value}.")
    if steps < 0 or directions < 1:
        raise ValueError(
            f"`steps` must be >= 0 and `directions` >= 1, got {steps} and {directions}."
        )


def _projected_ascent(
    objective: Objective, gradient: Weights, rho: float, steps: int
) -> Iterator[float]:
    """Yield the rise after SAM's step, and after each further one, projected to the ball."""
    perturbation = ascent_step(objective, gradient, rho)
    for _ in range(steps):
        loss, gradient = objective.gradient(objective.moved(perturbation))
        yield loss - objective.setup.loss
        if not all(g.isfinite().all() for g in gradient.values()):
            return  # an overflow: there is no further ascent
        step = ascent_step(objective, gradient, rho)
        perturbation = {name: x + step[name] for name, x in perturbation.items()}
        shrink = min(1.0, rho / max(norm(perturbation), torch.finfo(torch.float64).tiny))
        perturbation = {name: shrink * x for name, x in perturbation.items()}
    yield rise(objective, perturbation)


def _m_sharpness(objective: Objective, m: int, rho: float) -> float:
    """Return the mean over groups of m examples of the rise after a group's own ascent step."""
    groups = groups_of(objective.parts, m)
    total = 0.0
    for group in groups:
        before, gradient = objective.gradient(objective.weights, group)
        moved = objective.moved(ascent_step(objective, gradient, rho))
        examples = sum(part.examples for part in group)
        total += (objective.mean_loss(moved, group) - before) * examples
        if math.isnan(before):
            raise ValueError(
                f"m-sharpness needs a finite loss of every group, got nan for {m} examples: all "
                "labels of a group may be ignored ones."
            )
    return total / objective.setup.examples
