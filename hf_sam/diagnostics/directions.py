"""Directions in weight space: random ones, their norms and filter normalisation."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .objective import Weights


def wide(x: Tensor) -> Tensor:
    """Return a tensor in float64; in float32 on Apple's GPUs, which have no wider dtype."""
    return x.float() if x.device.type == "mps" else x.double()


def norm(direction: Weights) -> float:
    """Compute the L2 norm of all tensors as one vector."""
    return float(torch.stack([wide(x).norm() for x in direction.values()]).norm())


def gaussians(like: Weights, *, seed: int) -> Iterator[Weights]:
    """Draw an endless sequence of directions of independent standard normal numbers.

    Args:
        like: Tensors with the shapes, dtype and device.
        seed: Seed of all draws; they are the same on every device.

    Yields:
        One tensor for each of `like`.
    """
    return _drawn(like, seed, partial(torch.randn, device="cpu", dtype=torch.float32))


def signs(like: Weights, *, seed: int) -> Iterator[Weights]:
    """Draw directions of independent signs, 1 or -1 (Rademacher); otherwise as `gaussians`."""
    coins = _drawn(like, seed, partial(torch.randint, 2, device="cpu"))
    return ({name: 2 * coin - 1 for name, coin in of.items()} for of in coins)


def _drawn(like: Weights, seed: int, draw: Callable[..., Tensor]) -> Iterator[Weights]:
    """Draw on the host, whatever the default device and dtype are."""
    generator = torch.Generator("cpu").manual_seed(seed)
    while True:
        yield {name: draw(x.shape, generator=generator).to(x) for name, x in like.items()}


def filter_normalised(direction: Weights, weights: Weights) -> Weights:
    """Scale each filter of a direction to the norm of the weights' filter.

    As in section 4 of arXiv 1712.09913, so that plots of two networks are comparable although the
    scale of their weights differs. As in its official code, tensors of one dimension (biases and
    normalisation layers) are not moved.

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
    """Return the ratio of the filters' norms, of shape (filters, 1, ...); 0 for a zero filter."""
    norms = (y.flatten(1).norm(dim=1) for y in (weight, x))
    of_weight, of_x = norms
    ratio = torch.where(of_x > 0, of_weight / of_x, torch.zeros_like(of_x))
    return ratio.view(-1, *[1] * (x.dim() - 1))
