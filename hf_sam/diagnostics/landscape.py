"""Loss landscapes: the loss along one or two directions, and on the line between two models."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from .directions import filter_normalised, gaussians, norm
from .loss import LossFunction, model_loss
from .measuring import measuring
from .objective import Objective, Setup, Weights


@dataclass(frozen=True)
class Landscape:
    """The mean loss on a grid of weights."""

    setup: Setup
    x: NDArray[np.float64]  # (X,) steps along the first direction; 0 is the model
    y: NDArray[np.float64] | None  # (Y,) along the second; None for a line
    losses: NDArray[np.float64]  # (X,) or (X, Y); inf or nan where the network overflows
    axes: tuple[str, ...]  # description of each direction
    lengths: tuple[float, ...]  # L2 norm of a step of 1 along each direction

    def __post_init__(self) -> None:
        """Check that there is a loss for each point of the grid."""
        grid = (self.x.shape, () if self.y is None else self.y.shape)
        if self.losses.shape != grid[0] + grid[1] or len(self.axes) != len(self.losses.shape):
            raise ValueError("`losses` must be one for each point of `x` and `y`")


def landscape(
    model: nn.Module,
    batches: Iterable[Any],
    loss: LossFunction = model_loss,
    *,
    dimensions: int = 2,
    span: float = 1.0,
    points: int = 21,
    ascent: bool = False,
    max_batches: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> Landscape:
    """Compute the loss along filter-normalised random directions (arXiv 1712.09913, section 4).

    Args:
        model: Measured in the mode that `measuring` sets, and restored exactly.
        batches: A data loader.
        loss: The mean loss of a batch.
        dimensions: 1 for a line, 2 for a surface.
        span: The grid reaches from -span to span along each direction; at 1 each filter is moved
            by its own norm.
        points: Grid points along each direction; odd, so that the model is one of them.
        ascent: Use the gradient as the first direction, scaled to the length of a random one: the
            direction of SAM's ascent.
        max_batches: Use the first so many batches; None for all.
        seed: Seed of the directions, so that two models of one architecture get the same draws,
            and of the loader's order.
        dtype: To compute in; None for the weights' own.
        progress: Show a progress bar.

    Returns:
        The landscape. Costs one forward pass over the examples for each point (441 for a surface)
        and one more.

    Raises:
        ValueError: If an argument is out of its range, or there is nothing to measure.
    """
    _require_valid(dimensions, points, span)
    with measuring(
        model, batches, loss, max_batches=max_batches, seed=seed, dtype=dtype
    ) as objective:
        directions, axes = _directions(objective, dimensions, ascent, seed)
        grid = np.linspace(-span, span, points)
        grid[points // 2] = 0.0
        lines = [(x, y) for x in grid for y in (grid if dimensions == 2 else [0.0])]
        losses = [
            objective.mean_loss(_at(objective, directions, steps))
            for steps in tqdm(lines, desc="landscape", disable=not progress)
        ]
        return Landscape(
            setup=objective.setup,
            x=grid,
            y=grid if dimensions == 2 else None,
            losses=np.array(losses).reshape([points] * dimensions),
            axes=axes,
            lengths=tuple(map(norm, directions)),
        )


def line_between(
    model: nn.Module,
    other: nn.Module | Mapping[str, Tensor],
    batches: Iterable[Any],
    loss: LossFunction = model_loss,
    *,
    margin: float = 0.25,
    points: int = 25,
    max_batches: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> Landscape:
    """Compute the loss on the straight line from one model to another (arXiv 1412.6544).

    All floating-point tensors are interpolated, also frozen parameters and running statistics; the
    latter are not extrapolated. Interpolated BatchNorm statistics fit neither model, which alone
    can raise the loss between them.

    Args:
        model: The model at 0. Measured in the mode that `measuring` sets, and restored exactly.
        other: The model at 1, of the same architecture, or its `state_dict()`.
        batches: A data loader.
        loss: The mean loss of a batch.
        margin: How far the line extends beyond both models.
        points: Grid points; those of the two models are added if they are not among them.
        max_batches: Use the first so many batches; None for all.
        seed: Seed of the loader's order.
        dtype: To compute in; None for the weights' own.
        progress: Show a progress bar.

    Returns:
        The line; `setup` is of the model at 0. Costs one forward pass over the examples a
        point, and one more.

    Raises:
        ValueError: If the architectures differ, or there is nothing to measure.
    """
    if points < 2 or not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"`points` must be >= 2 and `margin` >= 0, got {points} and {margin}.")
    state = _state_of(other)
    with measuring(
        model, batches, loss, max_batches=max_batches, seed=seed, dtype=dtype
    ) as objective:
        way = objective.difference(state)
        grid = np.unique([*np.linspace(-margin, 1 + margin, points).round(12), 0.0, 1.0])
        losses = [
            objective.mean_loss(objective.towards(way, float(x)))
            for x in tqdm(grid, desc="line between two models", disable=not progress)
        ]
        return Landscape(
            setup=objective.setup,
            x=grid,
            y=None,
            losses=np.array(losses),
            axes=("from one model (0) to the other (1)",),
            lengths=(norm({name: way[name] for name in objective.weights}),),
        )


def _require_valid(dimensions: int, points: int, span: float) -> None:
    if dimensions not in (1, 2):
        raise ValueError(f"`dimensions` must be 1 or 2, got {dimensions}.")
    if points < 3 or points % 2 == 0 or not (math.isfinite(span) and span > 0):
        raise ValueError(
            f"`points` must be odd and >= 3 and `span` > 0, got {points} and {span}: the model is "
            "the grid's centre."
        )


def _state_of(model: Any) -> Mapping[str, Tensor]:
    """Return the `state_dict()` of a model, or the given one."""
    if isinstance(model, nn.Module):
        model = extract_model_from_parallel(model, keep_torch_compile=False).state_dict()
    if not isinstance(model, Mapping):
        raise ValueError(
            f"`other` must be a model or its `state_dict()`, got {type(model).__name__}: load it "
            "first."
        )
    return model


def _directions(
    objective: Objective, dimensions: int, ascent: bool, seed: int
) -> tuple[list[Weights], tuple[str, ...]]:
    """Return the directions of a surface or line, and a description of each."""
    draws = gaussians(objective.weights, seed=seed)
    directions = [filter_normalised(next(draws), objective.weights) for _ in range(dimensions)]
    axes = ["filter-normalised random direction"] * dimensions
    if ascent:
        gradient = objective.gradient(objective.weights)[1]
        by = norm(directions[0]) / max(norm(gradient), torch.finfo(torch.float64).tiny)
        directions[0] = {name: by * g for name, g in gradient.items()}
        axes[0] = "gradient (ascent direction)"
    if not all(map(norm, directions)):
        raise ValueError(
            "a landscape needs a trainable tensor of two dimensions or more and a gradient, got a "
            "direction of zeros: biases and normalisation layers do not move in it."
        )
    return directions, tuple(axes)


def _at(objective: Objective, directions: list[Weights], steps: tuple[float, ...]) -> Weights:
    weights = objective.weights
    for direction, step in zip(directions, steps, strict=False):
        weights = {name: w + step * direction[name] for name, w in weights.items()}
    return weights
