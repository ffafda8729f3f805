"""The checkpoint file for the state that a method keeps between steps."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.utils import logging

from .ascent import Ascent

logger = logging.get_logger(__name__)

MEMORY_FILE = "sam_memory.safetensors"


def save_memory(ascent: Ascent, folder: str, *, writes: bool) -> None:
    """Write a method's state, gathered if it is sharded; write no file if there is none.

    Args:
        ascent: The ascent of the run.
        folder: The checkpoint.
        writes: Whether this rank writes. All ranks must call: shards are gathered.
    """
    path, whole = Path(folder, MEMORY_FILE), {}
    for name, tensor in ascent.memory.items():
        gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if writes:
            whole[name] = gathered.cpu().contiguous()
    if whole:
        save_file(whole, path, metadata={"method": ascent.name})
    elif writes:
        path.unlink(missing_ok=True)  # of an earlier run in the same folder


def load_memory(ascent: Ascent, folder: str | None, params: Mapping[str, Tensor]) -> None:
    """Read a method's state, laid out as the parameters are.

    Without a file, or with that of another method, the method starts with empty state, with a
    warning.

    Args:
        ascent: The ascent of the run; updated.
        folder: The checkpoint; None where training begins.
        params: All parameters of the model, by name. State for other names is skipped.

    Raises:
        ValueError: If the file cannot be read.
    """
    if folder is None:
        return
    path = Path(folder, MEMORY_FILE)
    if not path.is_file():
        if ascent.method.has_memory:
            logger.warning(f"There is no {path}: {ascent.name} begins anew.")
        return
    try:
        with safe_open(path, framework="pt") as kept:
            method = (kept.metadata() or {}).get("method")
            names = [name for name in kept.keys() if name in params]  # noqa: SIM118  # no mapping
            found = {name: kept.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(
            f"{path} must be a file of safetensors, got one that cannot be read ({error}): resume "
            f"from another checkpoint, or remove the file, and {ascent.name} begins anew."
        ) from error
    fitting = {name: x for name, x in found.items() if x.shape == params[name].shape}
    if method != ascent.name or not fitting:
        logger.warning(f"{path} is of {method}, or of another model: {ascent.name} begins anew.")
        return
    ascent.memory = {name: _like(params[name], x) for name, x in fitting.items()}


@torch.no_grad()
def _like(param: Tensor, kept: Tensor) -> Tensor:
    """Return a copy with the parameter's layout and strides, on which the order of sums depends."""
    if isinstance(param, DTensor):
        placed = kept.to(param.device, param.dtype)
        return distribute_tensor(placed, param.device_mesh, param.placements)
    return torch.empty_like(param).copy_(kept)
