"""Perturbation fidelity: how much of a perturbation survives rounding to the weights' dtype."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .shards import Layout, by_layout, local, sum_over_shards


def is_low_precision(params: Iterable[Tensor], pass_dtype: torch.dtype | None = None) -> bool:
    """Return whether passes are made on weights of fewer bits than float32.

    Args:
        params: The weights w.
        pass_dtype: Dtype of the weights in a pass; None where it is that of `params`.
    """
    if pass_dtype is not None:
        return pass_dtype.itemsize < 4
    dtypes = {param.dtype for param in params}
    return any(dtype.is_floating_point and dtype.itemsize < 4 for dtype in dtypes)


@torch.no_grad()
def perturbation_fidelity(
    params: Iterable[Tensor],
    perturbation: Iterable[Tensor | None],
    pass_dtype: torch.dtype | None = None,
) -> Tensor:
    """Compare the realised perturbation, w + epsilon - w with both rounded, with epsilon.

    In bfloat16 the neighbours of a weight of 0.02 are 1e-4 away: smaller perturbations are lost or,
    where w itself is rounded for a pass, become as large as that.

    Args:
        params: The weights w.
        perturbation: Epsilon, one tensor for each parameter, of its shape, or None.
        pass_dtype: Dtype of the weights in a pass; None where it is that of `params`.

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
        dtype = pass_dtype or weights.dtype
        moved = (weights + local(epsilon)).to(dtype)  # as the engine rounds it
        realised = moved.float() - weights.to(dtype).float()
        products = (realised * realised, realised * intended, intended * intended)
        sums[layout] = sums.get(layout, 0) + torch.stack([x.sum() for x in products])
    whole = [sum_over_shards(parts, layout).cpu() for layout, parts in sums.items()]
    realised_square, product, intended_square = sum(whole, torch.zeros(3))
    ratio = (realised_square / intended_square).sqrt()
    cosine = product / (realised_square * intended_square).sqrt().clamp(min=1e-30)
    known = intended_square.isfinite() & (intended_square > 0)
    return torch.where(known, torch.stack([ratio, cosine]), torch.nan)
