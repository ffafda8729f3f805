"""A file of tensors in a checkpoint, whole also where the parameters are sharded."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], *, writes: bool
) -> None:
    """Write tensors, gathered if they are sharded.

    Args:
        path: The file.
        tensors: By name.
        metadata: Written beside them.
        writes: Whether this rank writes. All ranks must call: shards are gathered.
    """
    whole = {}
    for name, tensor in tensors.items():
        gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if writes:
            whole[name] = gathered.cpu().contiguous()
    if writes:
        save_file(whole, path, metadata=metadata)


def read_tensors(
    path: Path, likes: Mapping[str, Tensor], *, remedy: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors that fit, on the CPU, and what is written beside them.

    Args:
        path: The file.
        likes: Tensors by name; others, and those of another shape, are not read.
        remedy: What to do about a file that cannot be read.

    Raises:
        ValueError: If the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as kept:
            names = [name for name in kept.keys() if name in likes]  # noqa: SIM118  # no mapping
            found = {name: kept.get_tensor(name) for name in names}
            metadata = kept.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} must be a file of safetensors, got one that cannot be read ({error}): {remedy}"
        ) from error
    return {n: x for n, x in found.items() if x.shape == likes[n].shape}, metadata


@torch.no_grad()
def placed_as(like: Tensor, whole: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a copy with a parameter's layout and strides, on which the order of sums depends.

    Args:
        like: The parameter, whole or sharded.
        whole: Of its shape.
        dtype: The parameter's unless given.
    """
    if isinstance(like, DTensor):
        placed = whole.to(like.device, dtype or like.dtype)
        return distribute_tensor(placed, like.device_mesh, like.placements)
    return torch.empty_like(like, dtype=dtype).copy_(whole)
