"""What an image classifier is made from, and what it is when it is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import BaseImageProcessor, PreTrainedModel

from .weights import LoadReport

# Evaluation sees the whole image, resized to `input_size` whatever its shape; timm's names.
SQUASHED = {"crop_mode": "squash", "crop_pct": 1.0}


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from and what of it is overridden, as the user said it."""

    name: str  # a timm name, an image classifier on the Hub, or a local folder
    weights: Path | None = None  # safetensors of a backbone, or of all of the model
    init_scratch: bool = False  # no pretrained weights at all
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)  # for timm.create_model
    image_size: int | None = None  # pixels, height and width
    mean: Sequence[float] | None = None  # (3,) of the normalisation
    std: Sequence[float] | None = None  # (3,)
    squash: bool = False  # whether images are resized to a square whatever their shape

    @property
    def own_weights(self) -> bool:
        """Whether the weights that belong to the name are wanted."""
        return self.weights is None and not self.init_scratch

    @property
    def data_options(self) -> dict[str, Any]:
        """The entries of the data config that are overridden, as timm names them."""
        size = None if self.image_size is None else (3, self.image_size, self.image_size)
        options = {"input_size": size, "mean": self.mean, "std": self.std}
        given = {name: value for name, value in options.items() if value is not None}
        return {**given, **SQUASHED} if self.squash else given


@dataclass(frozen=True)
class Classifier:
    """A classifier, what its images must look like, and what was loaded into it."""

    model: PreTrainedModel
    data_config: dict[str, Any]  # input_size (3, height, width), mean, std, interpolation, crop_pct
    processor: BaseImageProcessor | None  # to be saved beside the model; timm's is in its config
    report: LoadReport


def freeze_batch_norm(model: nn.Module) -> None:
    """Use BatchNorm's statistics as at test time, as the paper's fine-tuning does.

    The affine parameters go on training. Done by a hook before each forward pass, because the
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
