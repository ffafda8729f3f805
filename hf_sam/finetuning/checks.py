"""Checks of the training arguments, by which a mistake is found before hours of training."""

import dataclasses
import math

import torch
from transformers import SchedulerType, get_scheduler
from transformers.training_args import OptimizerNames

from .. import SAMConfig
from ..reporting.model_card import METRICS

# What transformers reads of `optim_args`, and leaves out without a word if it is misspelt.
OPTIM_ARGS = {
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "adamw_torch": (),
    "adamw_torch_fused": (),
}
WORDS = {"nesterov": ("true", "false"), "centered": ("true", "false")}  # which are no numbers
LEAST = {"per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1, "data_seed": 0}


def require_valid(args: SAMConfig) -> None:
    """Check arguments that the Trainer would use late, or not at all.

    Raises:
        ValueError: For the first that is wrong, with rule, value and remedy.
    """
    _require_steps(args)
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"`{field.name}` must be a number, got nan: leave it out.")
    for name, least in LEAST.items():
        if (value := getattr(args, name)) is not None and value < least:
            raise ValueError(f"`{name}` must be >= {least}, got {value}: leave it out.")
    if not (math.isfinite(args.learning_rate) and args.learning_rate >= 0):
        raise ValueError(f"`learning_rate` must be >= 0 and finite, got {args.learning_rate}.")
    if args.neftune_noise_alpha is not None:
        raise ValueError("`neftune_noise_alpha` is for models of text: leave it out.")
    _require_whole_evaluation(args)
    _require_known_metric(args)
    _require_whole_schedule(args)
    _require_known_optim_args(args)


def _require_steps(args: SAMConfig) -> None:
    """Raise a ValueError for a run without steps; the Trainer treats 0 steps as unset."""
    if args.max_steps < 1 and args.max_steps != -1:
        raise ValueError(
            f"`max_steps` must be >= 1, got {args.max_steps}: leave it out to train by "
            "`num_train_epochs`."
        )
    if args.max_steps == -1 and not 0 < args.num_train_epochs < math.inf:
        raise ValueError(
            f"`num_train_epochs` must be > 0 and finite, got {args.num_train_epochs:g}: a run of "
            "no step trains nothing."
        )


def _require_whole_evaluation(args: SAMConfig) -> None:
    if args.dataloader_drop_last:
        raise ValueError("`dataloader_drop_last` would leave out evaluation images: leave it out.")
    if args.prediction_loss_only:
        raise ValueError("`prediction_loss_only` would leave no errors to measure: leave it out.")
    if args.label_names is not None:
        raise ValueError("`label_names` would leave no labels to measure by: leave it out.")
    if not args.eval_do_concat_batches:
        raise ValueError("`eval_do_concat_batches` must be true to measure errors: leave it out.")


def _require_known_metric(args: SAMConfig) -> None:
    known = {"loss", *(name.removeprefix("eval_") for name in METRICS)}
    wanted = (args.metric_for_best_model or "loss").removeprefix("eval_")
    if wanted not in known:
        raise ValueError(
            f"`metric_for_best_model` must be one of {', '.join(sorted(known))}, got "
            f"{args.metric_for_best_model!r}: leave it out to choose by the loss."
        )


def _require_whole_schedule(args: SAMConfig) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    kwargs = dict(args.lr_scheduler_kwargs or {})
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 2, scheduler_specific_kwargs=kwargs)
    except TypeError as error:
        raise ValueError(
            f"`lr_scheduler_kwargs` must be what {SchedulerType(args.lr_scheduler_type).value} "
            f"takes, got {kwargs}: {error}."
        ) from error


def _require_known_optim_args(args: SAMConfig) -> None:
    optimizer = OptimizerNames(args.optim).value
    known = OPTIM_ARGS.get(optimizer)
    if known is None or not args.optim_args:
        return
    for each in args.optim_args.replace(" ", "").split(","):
        name, _, value = each.partition("=")
        if name not in known:
            takes = f"name one of {', '.join(known)}" if known else "be left out"
            raise ValueError(f"`optim_args` must {takes} for {optimizer}, got {each!r}.")
        if not (value.lower() in WORDS[name] if name in WORDS else _is_number(value)):
            raise ValueError(
                f"`optim_args` must be name=value, with commas between, got {each!r}: "
                "momentum=0.9,nesterov=true."
            )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
