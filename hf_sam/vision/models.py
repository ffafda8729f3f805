"""Loading of image classifiers by timm name, Hub name, local folder or weights file."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from PIL.Image import Resampling
from safetensors import SafetensorError
from timm.data import resolve_data_config
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from .classifier import Classifier, ModelSource, require_rgb
from .decoding import first_line
from .timm_models import load_timm_folder, load_timm_name
from .weights import LoadReport


def load_classifier(source: ModelSource, label_names: Sequence[str]) -> Classifier:
    """Load an image classifier with one output for each label.

    The head is newly initialised if the pretrained one has another number of classes. A timm model
    is wrapped by transformers, and both libraries can load what `save_pretrained` writes.

    Args:
        source: Name, weights and overrides.
        label_names: (classes,) in the order of the integer labels.

    Returns:
        The classifier, on the CPU, in float32.

    Raises:
        ValueError: If the model is unknown or cannot be downloaded, or the weights do not fit.
    """
    if source.weights is not None and source.init_scratch:
        raise ValueError("`--weights` and `--init_scratch` exclude each other: leave one out.")
    folder = Path(source.name)
    try:
        if not folder.is_dir():
            if source.timm_name is not None:
                return load_timm_name(source, label_names)
            if AutoConfig.from_pretrained(source.name).model_type == "timm_wrapper":
                files = ["config.json", "model.safetensors"]
                folder = Path(snapshot_download(source.name, allow_patterns=files))
        if folder.is_dir() and "architecture" in json.loads((folder / "config.json").read_text()):
            return load_timm_folder(folder, source, label_names)
        return _load_transformers(source, label_names)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        weights = f" with `--weights` {str(source.weights)!r}" if source.weights else ""
        raise ValueError(
            f"model `{source.name}`{weights} cannot be loaded: {first_line(error)} "
            "`--model` takes a timm name, an image classifier on the "
            "Hub (owner/name) or a local folder with a config.json. Without a network use a local "
            "folder, or a timm name with `--weights FILE` or `--init_scratch`."
        ) from error


def _load_transformers(source: ModelSource, label_names: Sequence[str]) -> Classifier:
    """Load an image classifier of transformers itself."""
    if source.model_kwargs:
        raise ValueError(
            f"`--model_kwargs` must go with a timm model, got them with {source.name!r}: "
            "leave them out."
        )
    config = AutoConfig.from_pretrained(source.name)
    require_rgb(getattr(config, "num_channels", 3))
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: i for i, name in enumerate(label_names)}
    if source.init_scratch:
        model = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
        report = LoadReport(0, tuple(model.state_dict()), (), head_drawn_anew=True)
    else:
        model, report = _load_transformers_weights(source, config)
    processor = AutoImageProcessor.from_pretrained(source.name)
    data_config = _override(processor, source)
    is_here = all(param.numel() and not param.is_meta for param in model.parameters())
    if source.image_size is not None and is_here:  # and not in shards, under DeepSpeed's ZeRO-3
        _require_size(model, source)
    return Classifier(model, data_config, processor=processor, report=report)


def _require_size(model: PreTrainedModel, source: ModelSource) -> None:
    """Raise a ValueError unless a model takes the user's image size; costs a forward pass.

    Some are built for one size, and no entry of a config says so of all kinds of models.
    """
    is_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, source.image_size or 0, source.image_size or 0))
    except Exception as error:  # of any model's own kind
        raise ValueError(
            f"`--image_size` must be one that `{source.name}` takes, got {source.image_size} "
            f"({' '.join(str(error).split())}): pass the model's own size, or a timm model."
        ) from error
    finally:
        model.train(is_training)


def _load_transformers_weights(
    source: ModelSource, config: PreTrainedConfig
) -> tuple[PreTrainedModel, LoadReport]:
    """Load the model's own weights, or instead those of a file, by transformers."""
    if source.weights is not None and not source.weights.is_file():
        raise ValueError(f"`--weights` must be a safetensors file, got {str(source.weights)!r}.")
    with tempfile.TemporaryDirectory() as folder:
        if source.weights is not None:
            config.save_pretrained(folder)
            shutil.copy(source.weights, Path(folder) / "model.safetensors")
        model, info = AutoModelForImageClassification.from_pretrained(
            folder if source.weights else source.name,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    head = _transformers_head(model)
    resized = [name for name, *_ in info["mismatched_keys"]]
    missing = (*info["missing_keys"], *resized)
    backbone = [name for name in model.state_dict() if not name.startswith(head)]
    wrong = [name for name in resized if not name.startswith(head)]
    if wrong or set(backbone) <= set(missing):
        raise ValueError(
            f"the weights must fit the backbone of `{source.name}`, got none of its shape for "
            f"{(wrong or backbone)[0]}: check `--model` and `--weights`."
        )
    report = LoadReport(
        loaded=len(model.state_dict()) - len(missing),
        missing=missing,
        unexpected=tuple(info["unexpected_keys"]),
        head_drawn_anew=any(name.startswith(head) for name in missing),
    )
    return model, report


def _transformers_head(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the name prefixes of everything but the backbone."""
    children = (name for name, _ in model.named_children())
    return tuple(f"{name}." for name in children if name != model.base_model_prefix)


def _override(processor: BaseImageProcessor, source: ModelSource) -> dict[str, Any]:
    """Set the user's image size, mean and std in a processor, and return it as a data config."""
    size = dict(processor.size)
    edge = int(size.get("shortest_edge") or size["height"])
    crop = dict(getattr(processor, "crop_size", None) or {}).get("height", edge)
    crop_pct = getattr(processor, "crop_pct", None) or crop / edge  # ConvNeXt's has its own
    data_config = resolve_data_config(
        source.data_options,
        {
            "input_size": (3, crop, crop),
            "mean": tuple(processor.image_mean),
            "std": tuple(processor.image_std),
            "interpolation": Resampling(int(processor.resample)).name.lower(),
            "crop_pct": crop_pct,
            "crop_mode": "squash" if "height" in size else "center",
        },
    )
    height, width = data_config["input_size"][1:]
    scale = height / crop
    processor.size = {name: round(value * scale) for name, value in size.items() if value}
    if source.squash:
        if hasattr(processor, "crop_pct"):  # it takes a shortest edge only
            raise ValueError(
                f"`squash` must go with an image processor that squashes, got {source.name!r} with "
                f"a {type(processor).__name__}: leave it out, or pass a timm model."
            )
        processor.size = {"height": height, "width": width}
    if getattr(processor, "crop_size", None):
        processor.crop_size = {"height": height, "width": width}
    processor.image_mean, processor.image_std = data_config["mean"], data_config["std"]
    return data_config
