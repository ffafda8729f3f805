"""Directions in the space of a model's weights, and their norms."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .objective import Weights

DRAWN = torch.float32  # whatever the default is


def norm(direction: Weights) -> float:
    """Compute the L2 norm of all tensors as one vector."""
    return float(torch.stack([x.double().norm() for x in direction.values()]).norm())


def scaled(direction: Weights, factor: float) -> Weights:
    """Return `factor` times the direction."""
    return {name: factor * x for name, x in direction.items()}


def gaussians(like: Weights, *, seed: int) -> Iterator[Weights]:
    """Draw directions of independent standard normal numbers, without end.

    Args:
        like: Shapes, dtype and device.
        seed: Determines all of them, on every device.

    Yields:
        One tensor for each of `like`.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    while True:
        yield {
            name: torch.randn(x.shape, generator=generator, device="cpu", dtype=DRAWN).to(x)
            for name, x in like.items()
        }


def signs(like: Weights, *, seed: int) -> Iterator[Weights]:
    """Draw directions of independent signs, 1 or -1 (Rademacher), without end.

    Args:
        like: Shapes, dtype and device.
        seed: Determines all of them, on every device.

    Yields:
        One tensor for each of `like`.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    while True:
        yield {
            name: torch.randint(2, x.shape, generator=generator, device="cpu").to(x) * 2 - 1
            for name, x in like.items()
        }


def filter_normalised(direction: Weights, weights: Weights) -> Weights:
    """Scale each filter of a direction to the norm of the weights' filter.

    That is section 4 of arXiv 1712.09913: pictures of two networks are then comparable although
    the scale of their weights differs. As in its official code biases and normalisation layers,
    which have one dimension, do not move.

    Args:
        direction: One tensor for each weight. The filters are the slices of the first dimension.
        weights: Of the same shapes.

    Returns:
        The scaled direction, zero for tensors of fewer than two dimensions.
    """
    return {
        name: x * _filter_ratio(x, weights[name]) if x.dim() > 1 else torch.zeros_like(x)
        for name, x in direction.items()
    }


def _filter_ratio(x: Tensor, weight: Tensor) -> Tensor:
    """Of the filters' norms, of shape (filters, 1, ...); 0 for a filter that is 0."""
    norms = (y.flatten(1).norm(dim=1) for y in (weight, x))
    of_weight, of_x = norms
    ratio = torch.where(of_x > 0, of_weight / of_x, torch.zeros_like(of_x))
    return ratio.view(-1, *[1] * (x.dim() - 1))
