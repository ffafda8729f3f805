"""Vector arithmetic on all parameters' tensors together, sharded or not: norms, products, sums."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .shards import Layout, by_layout, local, norm_over_shards, sum_over_shards

# One tensor for each parameter, of its shape; None stands for zero.
Vector = Sequence[Tensor | None]

# Floor of norms in a denominator: a zero gradient gives a zero perturbation.
NORM_FLOOR = 1e-12

# Tensors of up to this many entries are joined for a norm: faster on a CPU than many calls.
PACKED = 1024


def gradient_norm(gradients: Iterable[Tensor | None], order: float = 2.0) -> Tensor:
    """Compute the norm of all gradients as one vector, in float32 or better.

    Args:
        gradients: Tensors of any shape, None for a parameter without a gradient. For sharded ones
            (DTensor) the norm is that of the whole tensor, on every rank.
        order: Order of the norm; `math.inf` for the largest absolute entry.

    Returns:
        A scalar of shape () on the device of the first gradient, not synchronised with the host.
        Communication: one reduction of a scalar for each layout of sharded tensors.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if any(gradient.is_sparse for gradient in present):
        present = [as_dense(gradient) for gradient in present]
    if not present:
        return torch.zeros(())
    norms = [
        norm_over_shards(_norm(group, order), order, layout).to(present[0].device)
        for layout, group in by_layout(present).items()
    ]
    return torch.linalg.vector_norm(torch.stack(norms), order)


def inner_product(a: Vector, b: Vector) -> Tensor:
    """Compute the inner product of two vectors, in float32 or better.

    Args:
        a: One tensor for each parameter, or None.
        b: Likewise, aligned with `a`.

    Returns:
        A scalar of shape (), not synchronised with the host; sharded tensors count as a whole.
    """
    sums: dict[Layout, Tensor] = {}
    for x, y in zip(a, b, strict=True):
        if x is None or y is None:
            continue
        (layout,) = by_layout([x])
        dtype = torch.promote_types(x.dtype, torch.float32)
        product = (local(as_dense(x)).to(dtype) * local(as_dense(y)).to(dtype)).sum()
        sums[layout] = sums[layout] + product if layout in sums else product
    if not sums:
        return torch.zeros(())
    device = next(iter(sums)).device
    return torch.stack([sum_over_shards(s, of).to(device) for of, s in sums.items()]).sum()


def combine(a: Vector, by: Tensor | float, b: Vector, by_b: Tensor | float) -> list[Tensor | None]:
    """Return `by` times `a` plus `by_b` times `b`, reusing the memory of `a`.

    Args:
        a: One tensor for each parameter, or None. Consumed, unless sparse.
        by: Factor of `a`: a number, or a scalar of shape ().
        b: Aligned with `a`; not changed.
        by_b: Factor of `b`.

    Returns:
        The sum; None where both are None. Memory: a copy of one tensor at a time.
    """
    return [_combined(x, by, y, by_b) for x, y in zip(a, b, strict=True)]


def _combined(
    x: Tensor | None, by: Tensor | float, y: Tensor | None, by_y: Tensor | float
) -> Tensor | None:
    if x is not None:
        x = as_dense(x)
        local(x).mul_(_on(x, by))
        if y is not None:
            local(x).add_(local(as_dense(y)) * _on(y, by_y))
        return x
    if y is None:
        return None
    x = as_dense(y).clone()
    local(x).mul_(_on(x, by_y))
    return x


def _on(x: Tensor, factor: Tensor | float) -> Tensor | float:
    return factor.to(x.device) if isinstance(factor, Tensor) else factor


def multiply(vectors: list[Tensor], factor: Tensor | list[Tensor]) -> None:
    """Multiply in place: by one scalar of shape (), or each vector by a tensor of its shape."""
    if isinstance(factor, list):
        if vectors:
            torch._foreach_mul_([local(x) for x in vectors], [local(f) for f in factor])
        return
    for group in by_layout(vectors).values():
        torch._foreach_mul_(group, factor.to(group[0].device))


def as_dense(gradient: Tensor) -> Tensor:
    """Return the gradient, or a dense copy of a sparse one."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def _norm(tensors: list[Tensor], order: float) -> Tensor:
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if double else torch.float32
    filled = [tensor for tensor in tensors if tensor.numel() > 0]  # a shard may be empty
    if not filled:
        return torch.zeros((), dtype=dtype, device=tensors[0].device)
    small = [tensor.flatten() for tensor in filled if tensor.numel() <= PACKED]
    large = [tensor for tensor in filled if tensor.numel() > PACKED]
    packed = [torch.cat(small)] if small else []
    norms = torch._foreach_norm(large + packed, order, dtype=dtype)
    return torch.linalg.vector_norm(torch.stack(norms), order)
