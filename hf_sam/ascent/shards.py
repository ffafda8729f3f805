"""Sharded tensors (DTensor): their local parts, and reductions that count every entry once."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.placement_types import Placement


class Layout(NamedTuple):
    """Device and sharding of a tensor: local parts of the same layout can be processed together."""

    device: torch.device
    mesh: DeviceMesh | None = None  # None for an ordinary tensor
    placements: tuple[Placement, ...] = ()


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds, sharing its memory."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():  # else autograd would record it, at four times the cost
        return tensor.to_local()


def by_layout(tensors: Iterable[Tensor]) -> dict[Layout, list[Tensor]]:
    """Group the local parts of tensors by layout."""
    groups = defaultdict(list)
    whole = defaultdict(list)  # separate: a Layout for each of many small tensors is slow
    for tensor in tensors:
        if isinstance(tensor, DTensor):
            layout = Layout(tensor.device, tensor.device_mesh, tensor.placements)
            groups[layout].append(local(tensor))
        else:
            whole[tensor.device].append(tensor)
    return dict(groups) | {Layout(device): of_device for device, of_device in whole.items()}


def sum_over_shards(values: Tensor, layout: Layout, *, largest: bool = False) -> Tensor:
    """Sum the values that each rank computed from its parts, or take their maximum.

    Replicas count once.

    Args:
        values: Of any shape, the same shape on all ranks.
        layout: Layout of the parts.
        largest: Whether to take the maximum instead of the sum.

    Returns:
        The result on every rank, of the shape of `values`, after one reduction if sharded.
    """
    if layout.mesh is None:
        return values
    sharded = Partial("max" if largest else "sum")
    parts = [Replicate() if p.is_replicate() else sharded for p in layout.placements]
    return DTensor.from_local(values, layout.mesh, parts, run_check=False).full_tensor()


def norm_over_shards(norm: Tensor, order: float, layout: Layout) -> Tensor:
    """Combine the norms of the local parts into the norm of the whole tensor, of shape ()."""
    if layout.mesh is None or order == math.inf:
        return sum_over_shards(norm, layout, largest=True)
    return sum_over_shards(norm**order, layout) ** (1.0 / order)
