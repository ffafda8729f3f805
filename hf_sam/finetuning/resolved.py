"""The resolved options of a run as a YAML recipe: `hf-sam finetune --print_config`."""

import dataclasses
import math
from enum import Enum
from typing import Any

import yaml
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from .. import SAMArguments, SAMConfig
from ..vision import ModelSource
from ..vision.timm_models import pretrained_cfg_of
from .fields import DataOptions, ModelOptions
from .loading import OF_THE_TASK, model_source, task_of
from .options import DEFAULTS

# Defaults that `TrainingArguments` replaces when it is built, and by what.
STANDS_FOR: dict[str, Any] = {
    "accelerator_config": {
        name: value
        for name, value in AcceleratorConfig().to_dict().items()
        if name != "use_configured_state"  # is taken out when devices are set up
    },
    "activation_checkpointing": False,
    "gradient_checkpointing": False,
    "debug": [],
    "disable_tqdm": False,
    "report_to": [],
}


def as_yaml(data: DataOptions, model: ModelOptions, args: SAMConfig) -> str:
    """Return the options as a file for `--config` that repeats the run."""
    accumulation, devices = args.gradient_accumulation_steps, args.world_size
    batch = args.per_device_train_batch_size * accumulation * devices
    lines = f"# {batch} images a step: {args.per_device_train_batch_size} in a micro-batch, "
    lines += f"{accumulation} accumulated, devices: {devices}; what is not listed is unset\n"
    images = data_values(data)
    if data.eval_share is not None:
        images["eval_split"] = None  # the task's, which is not measured on
    parts = {"images": images, "network": model_values(data, model)}
    for part, values in (parts | {"training": training_values(args)}).items():
        lines += f"\n# {part}\n"
        lines += "".join(_line(n, value) for n, value in values.items() if value is not None)
    return lines


def _line(name: str, value: Any) -> str:
    """Return an option as one line of YAML, also for lists and dictionaries."""
    flow = yaml.safe_dump({name: value}, default_flow_style=True, width=math.inf, sort_keys=False)
    return flow.strip()[1:-1] + "\n"


def data_values(data: DataOptions) -> dict[str, Any]:
    """Return the data options, with the task's defaults for those that are unset."""
    task = task_of(data)
    values = dataclasses.asdict(data) | {name: getattr(task, name) for name in OF_THE_TASK}
    values["crop_scale"] = None if data.crop_padding else list(task.crop_scale)
    if data.dataset is None and data.data_dir is None:
        values["dataset"] = "digits"
    return values


def model_values(data: DataOptions, model: ModelOptions) -> dict[str, Any]:
    """Return the model options, with the data set's and the model's defaults for those unset."""
    source = model_source(model, task_of(data))
    return dataclasses.asdict(model) | {
        "model": source.name,
        "init_scratch": source.init_scratch,
        "model_kwargs": dict(source.model_kwargs) or None,
        "image_size": image_size(source),
    }


def image_size(source: ModelSource) -> int | None:
    """Return the image size in pixels, or None if only the loaded model can tell."""
    if source.image_size is None and source.timm_name is not None:
        return int(pretrained_cfg_of(source.timm_name).input_size[1])
    return source.image_size


def training_values(args: SAMConfig) -> dict[str, Any]:
    """Return rho, and the training arguments that differ from the defaults or have ours."""
    plain = _trainers_defaults()
    plain |= {field.name: field.default for field in dataclasses.fields(SAMArguments)}
    always = {*DEFAULTS, "rho", "output_dir", "gradient_accumulation_steps"}
    return {
        name: value
        for name, value in args.to_dict().items()
        if name in always or (value != plain[name] and not name.endswith("_token"))
    }


def _trainers_defaults() -> dict[str, Any]:
    """Return the defaults of the Trainer's arguments, from the fields of their class.

    An object of it would set up Accelerate's processes and devices anew, for itself.
    """
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(TrainingArguments):
        factory = field.default_factory
        value = field.default if factory is dataclasses.MISSING else factory()
        plain[field.name] = value.value if isinstance(value, Enum) else value
    return plain | STANDS_FOR
