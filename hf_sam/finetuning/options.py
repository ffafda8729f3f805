"""Parsing of the options of `hf-sam finetune`, from the command line and a YAML file."""

import dataclasses
import os
from argparse import SUPPRESS, Namespace, _StoreFalseAction
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

from .. import SAMArguments, SAMConfig
from ..reporting.model_card import without_tokens
from .arguments import arguments_of, config_named, named, recipe_of, without_rivals
from .checks import require_valid
from .fields import BatchOptions, DataOptions, ModelOptions
from .hub import require_token
from .suggestions import near

# Defaults that differ from the Trainer's: the paper's optimizer and schedule, and an evaluation and
# a checkpoint each epoch. The clip norm is the official code's; learning rate, batch size and
# epochs are ours.
DEFAULTS: dict[str, Any] = {
    "optim": "sgd",
    "optim_args": "momentum=0.9",
    "learning_rate": 0.02,
    "lr_scheduler_type": "cosine",
    "weight_decay": 1e-5,
    "max_grad_norm": 5.0,
    "num_train_epochs": 15,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 64,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 10,
    "hub_strategy": "end",
    "restore_callback_states_from_checkpoint": True,  # the stopwatch
    "dataloader_num_workers": 4 if torch.cuda.is_available() else 0,
    "dataloader_pin_memory": torch.cuda.is_available(),
}

# The help's parts, in this order; what is in none of them is the Trainer's.
GENERAL = ("help", "config", "print_config", "output_dir", "resume_from_checkpoint")
PARTS = {
    "SAM": SAMArguments,
    "images": DataOptions,
    "network": ModelOptions,
    "batches": BatchOptions,
}
# Help of the Trainer's options that mean more here.
HELP = {
    "output_dir": "Folder of the run. Unset, it is runs/<data>-<model>-rho<rho>.",
    "resume_from_checkpoint": "Folder of a checkpoint to go on from, or last for the newest whole "
    "one in --output_dir.",
}


def parse_options(
    argv: Sequence[str], *, from_file: Sequence[str] | None = None
) -> tuple[DataOptions, ModelOptions, SAMConfig]:
    """Parse the options: the command line wins over the file of `--config`, and that over defaults.

    Args:
        argv: The command-line arguments.
        from_file: What `read_config` has read; None: the file is read now.

    Raises:
        ValueError: With rule, value and remedy.
    """
    parser = _command_line_parser()
    first = _typed(parser, argv)
    in_file = _from_file(parser, first) if from_file is None else from_file
    given = without_rivals(in_file, argv)
    typed, argv = named(argv), [*given, *argv]  # the last value of an option counts
    first, _ = parser.parse_known_args(argv)
    if first.optim != DEFAULTS["optim"]:
        parser.set_defaults(optim_args=None)  # the default momentum is for SGD
    if first.output_dir == "":  # a shell variable that is not set
        raise ValueError("`output_dir` must name a folder, got none: leave it out, or name one.")
    if first.output_dir is None:
        sources = (first.dataset or first.data_dir or "digits", first.model or first.weights)
        stems = [Path(os.path.abspath(name)).stem for name in sources if name]  # also of `.`
        parser.set_defaults(
            output_dir="-".join(["runs/" + stems[0], *stems[1:], f"rho{first.rho:g}"])
        )
    if (first.metric_for_best_model or "").endswith("error") and first.greater_is_better is None:
        parser.set_defaults(greater_is_better=False)  # the Trainer's default is True
    try:
        data, model, batch, args, _ = parser.parse_args_into_dataclasses(
            argv, look_for_args_file=False
        )
    except TypeError as error:  # a name within the JSON of an option, as `accelerator_config`
        raise ValueError(f"{error}: see the JSON of the options.") from error
    except RecursionError as error:  # from the JSON that some options take
        raise ValueError("the JSON of an option is nested too deeply: write less of it.") from error
    require_valid(args)
    _require_outside_data(args.output_dir, data.data_dir)
    if batch != BatchOptions():
        if batch.m is not None and batch.batch_size is not None:
            _require_needed_size(args, typed, named(given))
        batch.apply(args)
    if data.cache_images and args.dataloader_num_workers > 0:
        args.dataloader_persistent_workers = True  # else the cache is lost after an epoch
    if args.hub_token:  # the Trainer would write it into every checkpoint's training_args.bin
        os.environ["HF_TOKEN"], args.hub_token = args.hub_token, None
    _check_pushing(args)
    return data, model, args


def read_config(argv: Sequence[str], *, elsewhere: Collection[str] = ()) -> list[str]:
    """Read the file of `--config`, or the data set's recipe, as arguments; none without a file.

    Args:
        argv: The command-line arguments.
        elsewhere: Options that the caller's own command line has, which may be meant.

    Raises:
        ValueError: If the file cannot be read, or an option is unknown.
    """
    parser = _command_line_parser()
    return _from_file(parser, _typed(parser, argv, elsewhere), elsewhere)


def _typed(
    parser: HfArgumentParser, argv: Sequence[str], elsewhere: Collection[str] = ()
) -> Namespace:
    """Parse what is typed; raise a ValueError for an unknown option."""
    first, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(_unknown(unknown[0], _names(parser).union(elsewhere)))
    return first


def _from_file(
    parser: HfArgumentParser, first: Namespace, elsewhere: Collection[str] = ()
) -> list[str]:
    names = _names(parser)
    options = {a.dest: a for a in parser._actions if a.dest in names and a.nargs != 0}
    config = config_named(first.config) if first.config else _own_recipe(first)
    return [] if config is None else arguments_of(config, options, elsewhere)


def _names(parser: HfArgumentParser) -> set[str]:
    return {f.name for kind in parser.dataclass_types for f in dataclasses.fields(kind) if f.init}


def with_recipe(argv: Sequence[str]) -> list[str]:
    """Add the recipe of the data set that the arguments name, where they choose no network."""
    recipe = _own_recipe(_command_line_parser().parse_known_args(argv)[0])
    # by its packaged name: the cards show a path by its last part only
    return list(argv) if recipe is None else [*argv, f"--config={'/'.join(recipe.parts[-2:])}"]


def _own_recipe(first: Namespace) -> Path | None:
    chosen = first.config is not None or first.model or first.weights or first.init_scratch
    return None if chosen else recipe_of(first.dataset)


def _command_line_parser() -> HfArgumentParser:
    """Return the parser of all options, with the recipe's own defaults."""
    parser = HfArgumentParser(
        (DataOptions, ModelOptions, BatchOptions, SAMConfig),
        description="Fine-tune an image classifier with Sharpness-Aware Minimization.",
        prog="hf-sam finetune",
        usage="hf-sam finetune [--config FILE.yaml] [--option value ...]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        help="YAML file of options, or a packaged recipe, as oxford_pets/efficientnet_b7.yaml; the "
        "command line overrides it. Unset, and without another model: "
        "<dataset>/efficientnet_b0.yaml.",
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="Print the resulting options as such a file, and stop.",
    )
    parser.set_defaults(**DEFAULTS)
    _explain_negations(parser)
    _sort_help(parser)
    return parser


def _explain_negations(parser: HfArgumentParser) -> None:
    """Give `--no_x` a help text of its own; HfArgumentParser repeats that of `--x`."""
    for action in parser._actions:
        if isinstance(action, _StoreFalseAction):
            action.help = f"Set --{action.dest} to false."
            action.default = SUPPRESS  # the default is that of --x


def _sort_help(parser: HfArgumentParser) -> None:
    """Show what is hf_sam's before the hundred options of the Trainer."""
    part_of = {f.name: part for part, kind in PARTS.items() for f in dataclasses.fields(kind)}
    rest = "training (transformers' TrainingArguments)"
    groups = {title: parser.add_argument_group(title) for title in (*PARTS, rest)}
    for action in list(parser._optionals._group_actions):
        action.help = HELP.get(action.dest, action.help)
        if action.dest not in GENERAL:
            parser._optionals._group_actions.remove(action)
            groups[part_of.get(action.dest, rest)]._group_actions.append(action)


def _unknown(argument: str, names: set[str]) -> str:
    name = argument.split("=")[0]  # its value may be a token
    if not argument.startswith("-"):
        return f"{without_tokens([argument])[0]} follows no option that takes it: see --help."
    return f"unknown option {name}{near(name.lstrip('-'), names)}"


def _require_needed_size(args: SAMConfig, typed: set[str], given: set[str]) -> None:
    """Raise a ValueError for a micro-batch size that `batch_size` and `m` leave without effect.

    Typed ones may do so to that of a file, which the command line overrides.
    """
    name = "per_device_train_batch_size"
    if name in typed or {name, "batch_size", "m"} <= given:
        raise ValueError(
            f"`{name}` has no effect beside `batch_size` and `m`, got {getattr(args, name)}: leave "
            "one of the three out."
        )


def _require_outside_data(output_dir: str, data_dir: str | None) -> None:
    """Raise a ValueError if the next start would read what this run writes as data."""
    if data_dir is None:
        return
    written, read = (Path(os.path.realpath(path)) for path in (output_dir, data_dir))
    if not written.is_relative_to(read):
        return
    runs = ("options.json", "*/options.json", "sweep/*/options.json")
    if not any(next(written.glob(run), None) for run in runs):  # else it is to go on
        raise ValueError(
            f"`output_dir` must not be inside `data_dir`, got {output_dir!r} in {data_dir!r}: pass "
            "an `--output_dir` elsewhere."
        )


def _check_pushing(args: SAMConfig) -> None:
    for name, only in (("hub_strategy", "end"), ("hub_always_push", False), ("hub_revision", None)):
        if (value := getattr(args, name)) != only:
            value = getattr(value, "value", value)
            raise ValueError(
                f"`{name}` must be {only}, got {value}: a run is pushed once, to main, when it has "
                "ended. Leave the option out."
            )
    if args.push_to_hub:
        require_token()
