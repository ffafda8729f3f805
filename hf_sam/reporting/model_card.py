"""Model cards: how a model was trained, SAM's settings and the results."""

import html
import math
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import TrainingArguments

from ..ascent.methods import METHODS
from ..ascent.schedule import AscentSchedule
from ..config import SAMArguments
from .json_files import read_json, write_json
from .markdown import Markdown, code, code_block, render, unmarked

TAGS = ("sharpness-aware-minimization", "hf_sam")
LIBRARIES = ("hf-sam", "torch", "transformers", "accelerate", "datasets", "timm")
HYPERPARAMETERS = (
    ("optim", "optim_args", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay")
    + ("max_grad_norm", "num_train_epochs", "max_steps", "per_device_train_batch_size")
    + ("gradient_accumulation_steps", "world_size", "label_smoothing_factor", "bf16", "fp16")
    + ("seed",)
)
HUB_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
# The card's name of each metric, by the Trainer's name; all in percent.
METRICS = {
    "eval_top1_error": "top-1 error",
    "eval_top5_error": "top-5 error",
    "eval_mean_class_accuracy": "mean per-class accuracy",
}


@dataclass(frozen=True)
class RunRecord:
    """Record of one finished run: the only source of cards, tables and plots."""

    dataset: str
    dataset_id: str | None  # on the Hub
    train_examples: int
    eval_split: str
    eval_examples: int
    classes: int
    base: str  # name of the base model
    base_model: str | None  # its id on the Hub
    timm: bool  # whether timm loads the saved folder
    report: str  # which pretrained weights were loaded
    command: str  # without tokens
    seed: int
    hyperparameters: Mapping[str, Any]
    sam: Mapping[str, Any] | None  # the fields of SAMArguments; None: trained without SAM
    metrics: Mapping[str, float]
    gradient_evaluations: int  # forward-backward passes over an effective batch
    seconds: float  # wall time of training
    hardware: str
    versions: Mapping[str, str]  # of Python and of the packages
    date: str  # of the end of training, year-month-day
    remarks: Sequence[str] = ()  # caveats for a reader of the results
    data_options: Mapping[str, Any] = field(default_factory=dict)  # crops, augmentation, noise
    # Image size, mean and std of the normalisation, and the network's own arguments.
    model_options: Mapping[str, Any] = field(default_factory=dict)
    data_license: str | None = None
    weights_license: str | None = None  # of the base model, as the Hub names it
    train_overhead: float | None = None  # wall time relative to that without SAM, since a resume

    def write(self, path: Path) -> None:
        """Write the record as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record that `write` wrote.

        Raises:
            ValueError: If the file is truncated, edited or not a record.
        """
        return read_json(path, cls, remedy="restore it, or train that run again in a new folder")

    def __post_init__(self) -> None:
        """Check the numbers that cards and comparisons need."""
        for name in METRICS:
            if not 0 <= self.metrics.get(name, math.nan) <= 100:
                raise ValueError(f"`metrics` must have {name} in percent, got {self.metrics}")
        if self.sam is not None:
            _require_number(self.sam, "rho", of="sam")
            if str(self.sam.get("method", "sam")) not in METHODS:
                raise ValueError(f"`sam.method` must be of {', '.join(METHODS)}")
        _require_number(self.hyperparameters, "learning_rate", of="hyperparameters")
        if not math.isfinite(self.seconds):
            raise ValueError("`seconds` must be finite")


def _require_number(settings: Mapping[str, Any], name: str, *, of: str) -> None:
    value = settings.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"`{of}` must have a number as `{name}`, got {value!r}")


def settings_of(args: TrainingArguments, schedule: AscentSchedule) -> dict[str, Any]:
    """Collect a `RunRecord`'s fields about the arguments, the machine and the packages."""
    has_sam = isinstance(args, SAMArguments) and args.rho > 0 and not schedule.is_idle
    sam = args if has_sam else None
    names = list(HYPERPARAMETERS)
    if isinstance(args, SAMArguments) and args.weight_average is not None:
        names.append("weight_average")
    return {
        "seed": args.seed,
        "hyperparameters": {name: _plain(getattr(args, name)) for name in names},
        "sam": sam and _sam_settings(sam, schedule),
        "hardware": _hardware(args),
        "versions": versions(),
        "date": date.today().isoformat(),
    }


def _hardware(args: TrainingArguments) -> str:
    """Return the number of processes and the device of each."""
    kind = args.device.type
    if kind == "cpu":
        return f"CPU, {args.world_size} x {torch.get_num_threads()} threads"
    return f"{args.world_size} x {torch.cuda.get_device_name() if kind == 'cuda' else kind}"


def _sam_settings(sam: SAMArguments, schedule: AscentSchedule) -> dict[str, Any]:
    """Return SAM's fields, with the values that `max_overhead` has chosen."""
    names = [f.name for f in fields(SAMArguments) if f.name != "weight_average"]
    settings = {name: getattr(sam, name) for name in names}
    if sam.max_overhead is not None:
        settings["ascent_interval"] = schedule.interval
        settings["ascent_fraction"] = schedule.fraction
    return settings


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def write_run_card(path: Path, record: RunRecord, *, comparison: str | None = None) -> None:
    """Write the card of one fine-tuning run, with metadata that the Hub reads.

    Args:
        path: The file to write, usually README.md beside the model.
        record: The record of the run.
        comparison: Results of a comparison that the run belongs to, as Markdown.
    """
    title = f"{record.base}, {record.dataset}"
    title += f", SAM rho {record.sam['rho']:g}" if record.sam else ""
    settings = {**record.hyperparameters, **record.model_options, **record.data_options}
    text = render(
        "model_card.md",
        card_data=Markdown(_metadata(record, title).to_yaml()),
        record=record,
        title=title,
        comparison=comparison and Markdown(comparison),
        command=code_block(record.command),
        eval_split=code(record.eval_split),
        remarks=[Markdown(html.escape(remark, quote=False)) for remark in record.remarks],
        settings={code(name): value for name, value in settings.items()},
        results=Markdown(results_table(record.metrics)),
        sam_section=sam_section(record.sam) if record.sam else "Trained without SAM.",
    )
    ModelCard(text).save(path)


def _metadata(record: RunRecord, title: str) -> ModelCardData:
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=unmarked(record.dataset_id or record.dataset),
            dataset_name=unmarked(record.dataset),
            dataset_split=unmarked(record.eval_split),
            metric_type=name.removeprefix("eval_"),
            metric_name=f"{label}, %",
            metric_value=round(record.metrics[name], 3),
        )
        for name, label in METRICS.items()
        if name in record.metrics
    ]
    return ModelCardData(
        model_name=unmarked(title),
        license=record.weights_license and unmarked(record.weights_license),
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=[*(TAGS if record.sam else []), *(["timm"] if record.timm else [])],
        datasets=[unmarked(record.dataset_id)] if record.dataset_id else None,
        base_model=record.base_model and unmarked(record.base_model),
        metrics=[result.metric_type for result in results],
        eval_results=results,
    )


def results_table(metrics: Mapping[str, float]) -> str:
    """Render those metrics that were measured as a Markdown table, in percent."""
    rows = [
        f"| {label} | {metrics[name]:.2f} % |" for name, label in METRICS.items() if name in metrics
    ]
    return "\n".join(["| metric | value |", "|---|---|", *rows])


def without_tokens(arguments: Sequence[str]) -> list[str]:
    """Mask the values of options whose names end in `token`, and whatever looks like a Hub token.

    Args:
        arguments: Command-line arguments.

    Returns:
        The arguments, each quoted for a shell if necessary.
    """
    shown, is_secret = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        is_option = name.startswith("--") and name.endswith("token")
        if is_secret:
            argument = "***"
        elif is_option and equals:
            argument = f"{name}=***"
        argument = HUB_TOKEN.sub("***", argument)
        shown.append(argument if "***" in argument else shlex.quote(argument))
        is_secret = is_option and not equals
    return shown


def sam_section(settings: Mapping[str, Any]) -> Markdown:
    """Render a card's section on SAM: what it is, the settings, the citation.

    Args:
        settings: The run's fields of `SAMArguments`.

    Returns:
        Markdown, from a second-level heading on.
    """
    source = METHODS[settings.get("method", "sam")].source
    named = {code(name): value for name, value in settings.items()}
    method = code(settings.get("method", "sam"))
    return render("sam_section.md", settings=settings, named=named, method=method, source=source)


def add_sam_to_card(output_dir: str, sam: SAMArguments, schedule: AscentSchedule) -> None:
    """Add SAM's tags and section to the Trainer's model card, unless the schedule has no ascent.

    Args:
        output_dir: The folder in which the Trainer has written README.md.
        sam: The settings of the run.
        schedule: The ascent schedule of the run.

    Raises:
        FileNotFoundError: If there is no card.
    """
    if schedule.is_idle:
        return
    path = Path(output_dir) / "README.md"
    card = ModelCard.load(path)
    tags = card.data.tags or []
    card.data.tags = [*tags, *(tag for tag in TAGS if tag not in tags)]
    average = {"weight_average": sam.weight_average} if sam.weight_average else {}
    card.text += "\n" + sam_section(_sam_settings(sam, schedule) | average)
    card.save(path)


def _plain(value: Any) -> Any:
    """Return an enum's value instead of its Python name."""
    return getattr(value, "value", value)
