"""Model cards that say how a model was trained with SAM, and what came of it."""

import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Template
from transformers import TrainingArguments

from .config import SAMArguments

TEMPLATES = Path(__file__).parent / "templates"
TAGS = ("sharpness-aware-minimization", "hf_sam")
LIBRARIES = ("hf-sam", "torch", "transformers", "accelerate", "datasets", "timm")
HYPERPARAMETERS = (
    ("optim", "optim_args", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay")
    + ("max_grad_norm", "num_train_epochs", "max_steps", "per_device_train_batch_size")
    + ("gradient_accumulation_steps", "world_size", "label_smoothing_factor", "bf16", "fp16")
    + ("seed",)
)
# What the card calls each metric, by the Trainer's name; all in percent.
METRICS = {
    "eval_top1_error": "top-1 error",
    "eval_top5_error": "top-5 error",
    "eval_mean_class_accuracy": "mean per-class accuracy",
}


@dataclass(frozen=True)
class RunFacts:
    """What a card says of one run beyond its arguments."""

    dataset: str
    dataset_id: str | None  # on the Hub
    train_examples: int
    eval_split: str
    eval_examples: int
    classes: int
    base: str  # the base model in words
    base_model: str | None  # its id on the Hub
    timm: bool  # whether timm loads the saved folder
    report: str  # which weights were loaded
    command: Sequence[str]  # the words of the command line
    metrics: Mapping[str, float]
    remarks: Sequence[str] = ()  # what a reader of the results must know


def write_run_card(path: Path, facts: RunFacts, args: TrainingArguments) -> None:
    """Write the card of one fine-tuning run, with metadata that the Hub reads.

    Args:
        path: The file to write, usually README.md beside the model.
        facts: Data, model, command and results.
        args: Of the run; SAM's settings where it is a `SAMArguments` with `rho` > 0.
    """
    sam = args if isinstance(args, SAMArguments) and args.rho > 0 else None
    title = f"{facts.base}, {facts.dataset}" + (f", SAM rho {sam.rho:g}" if sam else "")
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=facts.dataset_id or facts.dataset,
            dataset_name=facts.dataset,
            dataset_split=facts.eval_split,
            metric_type=name.removeprefix("eval_"),
            metric_name=f"{label}, %",
            metric_value=round(facts.metrics[name], 3),
        )
        for name, label in METRICS.items()
        if name in facts.metrics
    ]
    data = ModelCardData(
        model_name=title,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=[*TAGS, *(["timm"] if facts.timm else [])] if sam else None,
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        base_model=facts.base_model,
        metrics=[result.metric_type for result in results],
        eval_results=results,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATES / "model_card.md"),
        **{f.name: getattr(facts, f.name) for f in fields(facts) if f.name != "command"},
        title=title,
        command=" ".join(without_tokens(facts.command)),
        results=results_table(facts.metrics),
        hyperparameters={name: _plain(getattr(args, name)) for name in HYPERPARAMETERS},
        versions={"python": platform.python_version(), **{n: version(n) for n in LIBRARIES}},
        sam_section=sam_section(sam) if sam else "Trained without SAM (rho = 0).",
    )
    card.save(path)


def results_table(metrics: Mapping[str, float]) -> str:
    """Render the metrics that are there as a Markdown table, in percent."""
    rows = [
        f"| {label} | {metrics[name]:.2f} % |" for name, label in METRICS.items() if name in metrics
    ]
    return "\n".join(["| metric | value |", "|---|---|", *rows])


def without_tokens(words: Sequence[str]) -> list[str]:
    """Replace what follows an option that names a token, and what looks like a Hub token.

    Args:
        words: The words of a command line.

    Returns:
        The words to show, each quoted for a shell where it must be.
    """
    shown, secret = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        is_option = name.startswith("--") and name.endswith("token")
        if secret:
            word = "***"
        elif is_option and equals:
            word = f"{name}=***"
        word = re.sub(r"hf_[A-Za-z0-9]{20,}", "***", word)
        shown.append(word if "***" in word else shlex.quote(word))
        secret = is_option and not equals
    return shown


def sam_section(sam: SAMArguments) -> str:
    """Render the section on SAM: what it is, the settings, the citation.

    Args:
        sam: The settings of the run; other fields of the object are left out.

    Returns:
        Markdown, from a second-level heading on.
    """
    settings = {f.name: getattr(sam, f.name) for f in fields(SAMArguments)}
    return Template((TEMPLATES / "sam_section.md").read_text()).render(settings=settings)


def add_sam_to_card(path: Path, sam: SAMArguments) -> None:
    """Add SAM's tags and section to a model card file.

    Args:
        path: The card, as the Trainer wrote it.
        sam: The settings of the run.

    Raises:
        FileNotFoundError: If there is no card at `path`.
    """
    card = ModelCard.load(path)
    tags = card.data.tags or []
    card.data.tags = [*tags, *(tag for tag in TAGS if tag not in tags)]
    card.text += "\n" + sam_section(sam)
    card.save(path)


def _plain(value: Any) -> Any:
    """An enum's value rather than its Python name."""
    return getattr(value, "value", value)
