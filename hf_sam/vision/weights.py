"""Loading of a weights file into a model, with a report of the tensors that fitted."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

TIMM_PREFIX = "timm_model."  # of tensor names in transformers' timm wrapper


@dataclass(frozen=True)
class LoadReport:
    """Report of which tensors of a model were loaded from pretrained weights."""

    loaded: int  # number of tensors
    missing: tuple[str, ...]  # in the model, not in the weights: newly initialised
    unexpected: tuple[str, ...]  # in the weights, not in the model: ignored
    head_drawn_anew: bool

    def __str__(self) -> str:
        """Format as one line, with the first few names of each kind."""
        if not self.loaded:
            return f"no pretrained weights: all {len(self.missing)} tensors drawn anew"
        head = "head drawn anew" if self.head_drawn_anew else "head kept"
        listed = (f"{_first(self.missing)} missing", f"{_first(self.unexpected)} unexpected")
        return f"{self.loaded} tensors loaded, {head}; " + ", ".join(listed)


def _first(names: tuple[str, ...], most: int = 6) -> str:
    shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"{len(names)} ({shown})" if names else "none"


def fill_weights(model: nn.Module, weights: Path, *, head: tuple[str, ...]) -> LoadReport:
    """Copy the tensors of a safetensors file into a model, by name.

    A ViT's position embedding is resampled to the model's image size, as timm does.

    Args:
        model: Changed in place.
        weights: The file.
        head: Name prefixes of the head's tensors, whose shapes may differ in the file.

    Returns:
        What was loaded, missing and unexpected.

    Raises:
        ValueError: If the file cannot be read, none of its tensors fits, or a tensor outside of the
            head has another shape.
    """
    try:
        given = {name.removeprefix(TIMM_PREFIX): t for name, t in load_file(weights).items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"`--weights` must be a safetensors file, got {str(weights)!r}: {error}."
        ) from error
    own = model.state_dict()
    _resample_positions(model, given)
    fitting = {n: t for n, t in given.items() if n in own and t.shape == own[n].shape}
    for name in own.keys() & given.keys() - fitting.keys():
        if not name.startswith(head):
            raise ValueError(
                f"`--weights` {str(weights)!r} must fit the model, got {name} of shape "
                f"{tuple(given[name].shape)} for {tuple(own[name].shape)}: check `--model`, "
                "`--model_kwargs` and `--image_size`."
            )
    if all(name.startswith(head) for name in fitting):
        raise ValueError(
            f"`--weights` {str(weights)!r} must have tensors of the backbone, got none of: "
            f"{', '.join(list(own)[:3])}, ...: check `--model`."
        )
    model.load_state_dict(fitting, strict=False)
    missing = tuple(name for name in own if name not in fitting)
    return LoadReport(
        loaded=len(fitting),
        missing=missing,
        unexpected=tuple(name for name in given if name not in own),
        head_drawn_anew=any(name.startswith(tuple(head)) for name in missing),
    )


def _resample_positions(model: Any, given: dict[str, Tensor]) -> None:
    """Resample a square grid of absolute position embeddings to the model's number of patches."""
    positions, own = given.get("pos_embed"), getattr(model, "pos_embed", None)
    if positions is None or own is None or positions.shape[::2] != own.shape[::2]:
        return
    grid = model.patch_embed.grid_size
    prefix = own.shape[1] - math.prod(grid)  # class token and registers
    patches = positions.shape[1] - prefix
    if positions.shape != own.shape and math.isqrt(patches) ** 2 == patches:
        given["pos_embed"] = resample_abs_pos_embed(
            positions.float(), list(grid), num_prefix_tokens=prefix
        )
