"""The checkpoint file for the state that a method keeps between steps."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers.utils import logging

from .ascent import Ascent
from .tensor_file import placed_as, read_tensors, write_tensors

logger = logging.get_logger(__name__)

MEMORY_FILE = "sam_memory.safetensors"


def save_memory(ascent: Ascent, folder: str, *, writes: bool) -> None:
    """Write a method's state; write no file if there is none.

    Args:
        ascent: The ascent of the run.
        folder: The checkpoint.
        writes: Whether this rank writes. All ranks must call: shards are gathered.
    """
    path = Path(folder, MEMORY_FILE)
    if ascent.memory:
        write_tensors(path, ascent.memory, {"method": ascent.name}, writes=writes)
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
    if folder is None or not ascent.method.has_memory:
        return
    path = Path(folder, MEMORY_FILE)
    if not path.is_file():
        logger.warning(f"There is no {path}: {ascent.name} begins anew.")
        return
    remedy = f"resume from another checkpoint, or remove the file, and {ascent.name} begins anew."
    fitting, metadata = read_tensors(path, params, remedy=remedy)
    of = metadata.get("method")
    if of != ascent.name or not fitting:
        other = "another model" if of == ascent.name else of
        logger.warning(f"{path} is of {other}: {ascent.name} begins anew.")
        return
    ascent.memory = {name: placed_as(params[name], x) for name, x in fitting.items()}
