"""timm models, built or loaded, and wrapped by transformers so that both libraries load them."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.data import resolve_data_config
from transformers import AutoModelForImageClassification

from .classifier import Classifier, ModelSource, require_rgb
from .weights import LoadReport, fill_weights

TimmModel = Any  # timm carries no types


def pretrained_cfg_of(name: str) -> Any:
    """Return timm's configuration of the pretrained weights of a model name.

    Raises:
        ValueError: If timm knows the network, but no such weights of it.
    """
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        network = name.partition(".")[0]
        raise ValueError(
            f"`--model` must be {network} or its weights by the names that timm has for them, got "
            f"{name!r}: they are {', '.join(timm.list_pretrained(f'{network}.*')) or 'none'}."
        ) from error


def load_timm_name(source: ModelSource, label_names: Sequence[str]) -> Classifier:
    """Load a model by its timm name, with weights from the Hub, from a file, or without any."""
    name = source.timm_name
    assert name is not None, "the caller has asked for a network of timm's"
    pretrained_cfg = pretrained_cfg_of(name)
    if source.own_weights and not pretrained_cfg.has_weights:
        raise ValueError(
            f"timm has no pretrained weights for `{name}`: pass `--weights FILE.safetensors` or "
            "`--init_scratch`."
        )
    kwargs = _timm_kwargs(source, fixed_size=pretrained_cfg.fixed_input_size)
    model = _create_timm(name, kwargs, pretrained=source.own_weights, num_classes=len(label_names))
    if source.own_weights:
        names, heads = list(model.state_dict()), _heads(model)
        kept = pretrained_cfg.num_classes == len(label_names)
        drawn = () if kept else tuple(name for name in names if name.startswith(heads))
        report = LoadReport(len(names) - len(drawn), drawn, (), head_drawn_anew=bool(drawn))
    else:
        report = _fill_timm(model, source.weights)
    return _wrap_timm(model, kwargs, source, label_names, report)


def load_timm_folder(folder: Path, source: ModelSource, label_names: Sequence[str]) -> Classifier:
    """Load a model folder that timm or transformers' timm wrapper has saved."""
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
    if weights is not None and source.own_weights and not weights.is_file():
        raise ValueError(
            f"`--model` folder {str(folder)!r} must have a model.safetensors: export it with "
            "`safe_serialization=True`, or pass `--weights FILE.safetensors`."
        )
    return _wrap_timm(model, kwargs, source, label_names, _fill_timm(model, weights))


def _timm_kwargs(source: ModelSource, *, fixed_size: bool) -> dict[str, Any]:
    """Return the arguments of timm.create_model; a ViT is built for one image size."""
    size = {"img_size": source.image_size} if fixed_size and source.image_size else {}
    return {**size, **source.model_kwargs}


def _create_timm(name: str, kwargs: Mapping[str, Any], **common: Any) -> TimmModel:
    """Build a timm model; raise a ValueError if it does not take `kwargs`."""
    require_rgb(kwargs.get("in_chans", 3))
    try:
        return timm.create_model(name, **common, **kwargs)
    except (OSError, SafetensorError):  # of a download
        raise
    except Exception as error:  # arguments reach any code of timm's and torch's
        raise ValueError(
            f"timm cannot build `{name}` with {dict(kwargs)} ({type(error).__name__}: "
            f"{' '.join(str(error).split())}). Check `--model_kwargs` and `--image_size`."
        ) from error


def _fill_timm(model: TimmModel, weights: Path | None) -> LoadReport:
    if weights is None:
        return LoadReport(0, tuple(model.state_dict()), (), head_drawn_anew=True)
    return fill_weights(model, weights, head=_heads(model))


def _heads(model: TimmModel) -> tuple[str, ...]:
    """Return the name prefixes of the modules that make the logits."""
    heads = model.pretrained_cfg["classifier"]
    if heads is None:
        raise ValueError(
            "`--model` must be a classifier, got an encoder without a head, "
            f"{model.pretrained_cfg['architecture']}: pass another."
        )
    return tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))


def _wrap_timm(
    timm_model: TimmModel,
    kwargs: Mapping[str, Any],
    source: ModelSource,
    label_names: Sequence[str],
    report: LoadReport,
) -> Classifier:
    """Wrap a timm model by transformers, by way of a temporary folder in timm's format.

    Only a model loaded from such a folder is saved with timm's own tensor names; and timm needs the
    config entries that are filled in here, and a `model_args` that is not null.
    """
    data_config = resolve_data_config(source.data_options, timm_model.pretrained_cfg)
    kept = ("classifier", "first_conv", "fixed_input_size", "tag")
    pretrained_cfg = {k: v for k, v in timm_model.pretrained_cfg.items() if k in kept} | data_config
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
