"""Image classifiers by name, folder or weights file, saved so that two libraries load them."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from timm.data import resolve_data_config
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
)

from .weights import LoadReport, fill_weights

TimmModel = Any  # timm carries no types
# timm's names of Pillow's resampling codes, in the order of the codes
PIL_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


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

    @property
    def own_weights(self) -> bool:
        """Whether the weights that belong to the name are wanted."""
        return self.weights is None and not self.init_scratch

    @property
    def data_options(self) -> dict[str, Any]:
        """The entries of the data config that are overridden, as timm names them."""
        size = None if self.image_size is None else (3, self.image_size, self.image_size)
        options = {"input_size": size, "mean": self.mean, "std": self.std}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Classifier:
    """A classifier, what its images must look like, and what was loaded into it."""

    model: PreTrainedModel
    data_config: dict[str, Any]  # input_size (3, height, width), mean, std, interpolation, crop_pct
    processor: BaseImageProcessor | None  # to be saved beside the model; timm's is in its config
    report: LoadReport


def load_classifier(source: ModelSource, label_names: Sequence[str]) -> Classifier:
    """Load an image classifier with one output for each label.

    The head is drawn anew where the pretrained one has another number of classes. A timm model is
    wrapped by transformers, and what `save_pretrained` writes of it loads in both libraries.

    Args:
        source: Name, weights and overrides.
        label_names: (classes,) in the order of the integer labels.

    Returns:
        The classifier, on the CPU, in float32.

    Raises:
        ValueError: If the model is not known or cannot be reached, or the weights do not fit it.
    """
    if source.weights is not None and source.init_scratch:
        raise ValueError("`--weights` and `--init_scratch` exclude each other: leave one out.")
    folder = Path(source.name)
    try:
        if not folder.is_dir():
            if timm.is_model(source.name.removeprefix("timm/")):
                return _load_timm_name(source, label_names)
            if AutoConfig.from_pretrained(source.name).model_type == "timm_wrapper":
                files = ["config.json", "model.safetensors"]
                folder = Path(snapshot_download(source.name, allow_patterns=files))
        if folder.is_dir() and "architecture" in json.loads((folder / "config.json").read_text()):
            return _load_timm_folder(folder, source, label_names)
        return _load_transformers(source, label_names)
    except OSError as error:
        raise ValueError(
            f"model `{source.name}` cannot be loaded: {type(error).__name__}: "
            f"{str(error).splitlines()[0]} `--model` takes a timm name, an image classifier on the "
            "Hub (owner/name) or a local folder with a config.json. Without a network use a local "
            "folder, or a timm name with `--weights FILE` or `--init_scratch`."
        ) from error


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


def _load_timm_name(source: ModelSource, label_names: Sequence[str]) -> Classifier:
    """Load a model that timm lists, its weights from the Hub, a file, or not at all."""
    name = source.name.removeprefix("timm/")
    pretrained_cfg = timm.get_pretrained_cfg(name)
    if source.own_weights and not pretrained_cfg.has_weights:
        raise ValueError(
            f"timm has no pretrained weights for `{name}`: pass `--weights FILE.safetensors` or "
            "`--init_scratch`."
        )
    kwargs = _timm_kwargs(source, fixed_size=pretrained_cfg.fixed_input_size)
    model = _create_timm(name, kwargs, pretrained=source.own_weights, num_classes=len(label_names))
    if source.own_weights:
        classes_differ = pretrained_cfg.num_classes != len(label_names)
        report = LoadReport(len(model.state_dict()), (), (), head_drawn_anew=classes_differ)
    else:
        report = _fill_timm(model, source.weights)
    return _wrap_timm(model, kwargs, source, label_names, report)


def _load_timm_folder(folder: Path, source: ModelSource, label_names: Sequence[str]) -> Classifier:
    """Load a folder that timm or transformers' timm wrapper has saved."""
    config = json.loads((folder / "config.json").read_text())
    pretrained_cfg = config.get("pretrained_cfg", {})
    kwargs = dict(config.get("model_args") or {})
    kwargs |= _timm_kwargs(source, fixed_size=pretrained_cfg.get("fixed_input_size", False))
    kwargs.pop("num_classes", None)  # timm's own exports may carry it; it is an argument already
    model = _create_timm(
        config["architecture"],
        kwargs,
        num_classes=len(label_names),
        pretrained_cfg_overlay=pretrained_cfg,
    )
    weights = folder / "model.safetensors" if source.own_weights else source.weights
    return _wrap_timm(model, kwargs, source, label_names, _fill_timm(model, weights))


def _timm_kwargs(source: ModelSource, *, fixed_size: bool) -> dict[str, Any]:
    """Return the arguments of timm.create_model; a ViT must be built for its image size."""
    size = {"img_size": source.image_size} if fixed_size and source.image_size else {}
    return {**size, **source.model_kwargs}


def _create_timm(name: str, kwargs: Mapping[str, Any], **common: Any) -> TimmModel:
    """Build a timm model, or say that `kwargs` do not suit it."""
    try:
        return timm.create_model(name, **common, **kwargs)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"timm cannot build `{name}` with {dict(kwargs)}: {error}. "
            "Check `--model_kwargs` and `--image_size`."
        ) from error


def _fill_timm(model: TimmModel, weights: Path | None) -> LoadReport:
    if weights is None:
        return LoadReport(0, tuple(model.state_dict()), (), head_drawn_anew=True)
    heads = model.pretrained_cfg["classifier"]
    return fill_weights(model, weights, head=[heads] if isinstance(heads, str) else list(heads))


def _wrap_timm(
    timm_model: TimmModel,
    kwargs: Mapping[str, Any],
    source: ModelSource,
    label_names: Sequence[str],
    report: LoadReport,
) -> Classifier:
    """Hand a timm model to transformers by a folder in timm's format.

    Only a model that came from such a folder is saved under timm's own tensor names; and timm reads
    neither a null `model_args` nor a config without the entries that are filled in here.
    """
    data_config = resolve_data_config(source.data_options, timm_model.pretrained_cfg)
    pretrained_cfg = {
        **{k: v for k, v in timm_model.pretrained_cfg.items() if k in ("classifier", "first_conv")},
        **{k: v for k, v in timm_model.pretrained_cfg.items() if k in ("fixed_input_size", "tag")},
        **data_config,
    }
    config = {
        "architecture": timm_model.pretrained_cfg["architecture"],
        "num_classes": len(label_names),
        "label_names": list(label_names),
        "model_args": dict(kwargs),
        "pretrained_cfg": pretrained_cfg,
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        state = {name: tensor.contiguous() for name, tensor in timm_model.state_dict().items()}
        save_file(state, Path(folder) / "model.safetensors")
        model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32)
    model.config.pretrained_cfg = {
        **pretrained_cfg,
        "architecture": config["architecture"],
        "num_classes": len(label_names),
    }
    return Classifier(model, data_config, processor=None, report=report)


def _load_transformers(source: ModelSource, label_names: Sequence[str]) -> Classifier:
    """Load an image classifier of transformers itself."""
    if source.model_kwargs:
        raise ValueError(
            f"`--model_kwargs` must go with a timm model, got them with {source.name!r}: "
            "leave them out."
        )
    config = AutoConfig.from_pretrained(source.name)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: i for i, name in enumerate(label_names)}
    if source.own_weights:
        model, info = AutoModelForImageClassification.from_pretrained(
            source.name,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
        head = _transformers_head(model)
        resized = [name for name, *_ in info["mismatched_keys"]]
        if wrong := [name for name in resized if not name.startswith(head)]:
            raise ValueError(
                f"model `{source.name}` must fit its own weights, got another shape for {wrong[0]}:"
                " check the folder's config.json."
            )
        missing = (*info["missing_keys"], *resized)
        report = LoadReport(
            loaded=len(model.state_dict()) - len(missing),
            missing=missing,
            unexpected=tuple(info["unexpected_keys"]),
            head_drawn_anew=any(name.startswith(head) for name in missing),
        )
    else:
        model = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
        report = LoadReport(0, tuple(model.state_dict()), (), head_drawn_anew=True)
        if source.weights is not None:
            report = fill_weights(model, source.weights, head=_transformers_head(model))
    processor = AutoImageProcessor.from_pretrained(source.name)
    return Classifier(model, _override(processor, source), processor=processor, report=report)


def _transformers_head(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the name prefixes of what is not the backbone."""
    children = (name for name, _ in model.named_children())
    return tuple(f"{name}." for name in children if name != model.base_model_prefix)


def _override(processor: BaseImageProcessor, source: ModelSource) -> dict[str, Any]:
    """Set the user's image size, mean and std in a processor, and return it as a data config."""
    size = dict(processor.size)
    edge = int(size.get("shortest_edge") or size["height"])
    crop = dict(getattr(processor, "crop_size", None) or {}).get("height", edge)
    data_config = resolve_data_config(
        source.data_options,
        {
            "input_size": (3, crop, crop),
            "mean": tuple(processor.image_mean),
            "std": tuple(processor.image_std),
            "interpolation": PIL_FILTERS[int(processor.resample)],
            "crop_pct": crop / edge,
        },
    )
    height, width = data_config["input_size"][1:]
    scale = height / crop
    processor.size = {name: round(value * scale) for name, value in size.items() if value}
    if getattr(processor, "crop_size", None):
        processor.crop_size = {"height": height, "width": width}
    processor.image_mean, processor.image_std = data_config["mean"], data_config["std"]
    return data_config
