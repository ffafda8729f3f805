"""Image classifiers: the source of a model (`ModelSource`) and the loaded model (`Classifier`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import nn
from transformers import BaseImageProcessor, PreTrainedModel

from .weights import LoadReport

# Entries of timm's data config with which evaluation resizes whole images to `input_size`.
SQUASHED = {"crop_mode": "squash", "crop_pct": 1.0}


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, and the settings of it that the user overrides."""

    name: str  # a timm name, an image classifier on the Hub, or a local folder
    weights: Path | None = None  # safetensors file of a backbone or of a whole model
    init_scratch: bool = False  # no pretrained weights at all
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)  # for timm.create_model
    image_size: int | None = None  # pixels, height and width
    mean: Sequence[float] | None = None  # (3,) of the normalisation
    std: Sequence[float] | None = None  # (3,)
    squash: bool = False  # whether whole images of any shape are resized to a square

    @property
    def timm_name(self) -> str | None:
        """Timm's name of the network; None for a folder, which wins over it, and for the Hub's."""
        name = self.name.removeprefix("timm/")
        return name if timm.is_model(name) and not Path(self.name).is_dir() else None

    @property
    def own_weights(self) -> bool:
        """Whether to load the pretrained weights that belong to the name."""
        return self.weights is None and not self.init_scratch

    @property
    def data_options(self) -> dict[str, Any]:
        """The overridden entries of the data config, by timm's names."""
        size = None if self.image_size is None else (3, self.image_size, self.image_size)
        options = {"input_size": size, "mean": self.mean, "std": self.std}
        given = {name: value for name, value in options.items() if value is not None}
        return {**given, **SQUASHED} if self.squash else given


@dataclass(frozen=True)
class Classifier:
    """A loaded classifier, its image preprocessing and a report of the loaded weights."""

    model: PreTrainedModel
    data_config: dict[str, Any]  # input_size (3, height, width), mean, std, interpolation, crop_pct
    processor: BaseImageProcessor | None  # saved beside the model; None for timm models
    report: LoadReport


def require_rgb(channels: Any) -> None:
    """Raise a ValueError unless a network takes images of three channels.

    Args:
        channels: Of its input; timm's `in_chans`.
    """
    if channels != 3:
        raise ValueError(
            f"the network must take three channels (timm: `in_chans=3`), got {channels!r}: images "
            "are made RGB, grey ones too. Take a model for RGB."
        )


def freeze_batch_norm(model: nn.Module) -> None:
    """Make BatchNorm use its running statistics in training too, as the paper's fine-tuning does.

    The affine parameters are still trained. A hook does this before each forward pass, because the
    Trainer puts the model into training mode at every step.

    Args:
        model: Changed in place.

    Raises:
        ValueError: If there is no BatchNorm in the model.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise ValueError("`--freeze_batch_norm` needs a model with BatchNorm: leave it out.")

    def use_running_stats(module: nn.Module, args: Any) -> None:
        for norm in norms:
            norm.eval()

    model.register_forward_pre_hook(use_running_stats)
