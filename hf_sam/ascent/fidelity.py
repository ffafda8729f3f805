"""Perturbation fidelity: how much of a perturbation survives rounding to the weights' dtype."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .shards import Layout, by_layout, local, sum_over_shards


def is_low_precision(params: Iterable[Tensor]) -> bool:
    """Return whether any parameter has fewer bits than float32."""
    return any(p.is_floating_point() and p.element_size() < 4 for p in params)


@torch.no_grad()
def perturbation_fidelity(
    params: Iterable[Tensor], perturbation: Iterable[Tensor | None]
) -> Tensor:
    """Compare the realised perturbation, w + epsilon - w in the weights' dtype, with epsilon.

    In bfloat16 the neighbours of a weight of 0.02 are 1e-4 away: smaller perturbations are lost,
    larger ones are rounded.

    Args:
        params: The weights w.
        perturbation: Epsilon, one tensor for each parameter, of its shape, or None.

    Returns:
        Shape (2,), on the host: the L2 norm of the realised perturbation divided by that of
        epsilon, and the cosine between the two; both 1 where nothing is lost, nan where epsilon is
        zero or not finite. Memory: a few float32 copies of one tensor at a time.
    """
    sums: dict[Layout, Tensor] = {}
    for param, epsilon in zip(params, perturbation, strict=True):
        if epsilon is None:
            continue
        (layout,) = by_layout([param])
        weights, intended = local(param), local(epsilon).float()
        moved = (weights + local(epsilon)).to(weights.dtype)  # as `perturbed` rounds it
        realised = moved.float() - weights.float()
        products = (realised * realised, realised * intended, intended * intended)
        sums[layout] = sums.get(layout, 0) + torch.stack([x.sum() for x in products])
    whole = [sum_over_shards(parts, layout).cpu() for layout, parts in sums.items()]
    realised_square, product, intended_square = sum(whole, torch.zeros(3))
    ratio = (realised_square / intended_square).sqrt()
    cosine = product / (realised_square * intended_square).sqrt().clamp(min=1e-30)
    known = intended_square.isfinite() & (intended_square > 0)
    return torch.where(known, torch.stack([ratio, cosine]), torch.nan)
