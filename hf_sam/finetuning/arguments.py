"""Command-line arguments from a YAML recipe, and removing options from command lines."""

import json
from argparse import Action
from collections.abc import Collection, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import yaml
from transformers.hf_argparser import string_to_bool
from transformers.utils import logging

from ..vision import TASKS
from .suggestions import near

# Pairs of options that set the same thing in two ways.
RIVALS = (
    ("num_train_epochs", "max_steps"),
    ("crop_scale", "crop_padding"),
    ("batch_size", "gradient_accumulation_steps"),
)
PACKAGE = Path(__file__).parent.parent
# The folder of the YAML recipes: inside the package in a wheel, beside it in a clone.
RECIPES = next(p for p in (PACKAGE / "recipes", PACKAGE.parent / "recipes") if p.is_dir())
DICTIONARIES = ("_kwargs", "_config", "deepspeed")  # suffixes of options that take one
ALSO_TRUE_OR_FALSE = ("resume_from_checkpoint",)
logger = logging.get_logger("finetune")


def arguments_of(
    path: Path, options: Mapping[str, Action], elsewhere: Collection[str] = ()
) -> list[str]:
    """Convert the options in a YAML file to command-line arguments, which the parser then checks.

    Args:
        path: The file.
        options: All options of the parser, by name.
        elsewhere: Options that only a command line has.

    Raises:
        ValueError: If the file cannot be read, names an unknown option, or has a value that the
            parser would misread.
    """
    arguments: list[str] = []
    for name, value in _values_in(path).items():
        if name in elsewhere and name not in options:
            raise ValueError(
                f"`{name}` must be on the command line, got it in {str(path)!r}, which is for the "
                f"options of single runs: pass `--{name}`."
            )
        if name not in options:
            known = {*options, *elsewhere}
            raise ValueError(f"unknown option {name!r} in {str(path)!r}{near(str(name), known)}")
        try:
            arguments += _arguments(name, value, options[name])
        except ValueError as error:
            raise ValueError(f"`{name}` in {str(path)!r} must {error}") from error
    return arguments


class OncePerKey(yaml.SafeLoader):
    """PyYAML's safe loader, which takes the last value of a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is there twice."""
        values = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := [value for value in values if values.count(value) > 1]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]} is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


def _values_in(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=OncePerKey) or {}  # noqa: S506
    except RecursionError as error:
        raise ValueError(
            f"`--config` {str(path)!r} is nested too deeply: write `option: value` lines."
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"`--config` {str(path)!r} cannot be read as YAML ({' '.join(str(error).split())}): "
            "check the path, and that it has `option: value` lines."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"`--config` must hold `option: value` lines, got {str(path)!r}.")
    return values


def _arguments(name: str, value: Any, option: Action) -> list[str]:
    """Return an option and its value as arguments; raise a ValueError for a wrong kind of value."""
    if value is None:
        raise ValueError("have a value, got none: leave it out.")
    if isinstance(value, dict):
        if not name.endswith(DICTIONARIES):
            raise ValueError(f"be one value, got {value!s:.80}: write `{name}: value`.")
        return [f"--{name}={_as_json(value)}"]
    if isinstance(value, list):
        if option.nargs != "+":
            raise ValueError(f"be one value, got the list {value!s:.80}: choose one.")
        if not value or any(isinstance(entry, list | dict | None) for entry in value):
            raise ValueError(
                f"be a list of values, got {value!s:.80}: write `{name}: [value, value]`."
            )
        return [f"--{name}", *(_plain(name, entry, option) for entry in value)]
    return [f"--{name}={_plain(name, value, option)}"]


def _plain(name: str, value: Any, option: Action) -> str:
    takes_bool = option.type is string_to_bool or option.nargs == "?" or name in ALSO_TRUE_OR_FALSE
    if isinstance(value, bool) and not takes_bool:
        word = "on" if value else "no"
        raise ValueError(
            f"not be {str(value).lower()}, as which YAML reads yes, no, on and off without quotes: "
            f'write the word in quotes, as "{word}".'
        )
    return str(value)


def _as_json(value: dict[Any, Any]) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:  # a date; an alias to itself
        raise ValueError(f"hold what JSON can ({error}): write text in quotes.") from error


def recipe_of(dataset: str | None) -> Path | None:
    """Return a known data set's recipe for one GPU and one evening, if there is one, and log it."""
    path = RECIPES / str(dataset) / "efficientnet_b0.yaml"
    if dataset not in TASKS or not path.is_file():
        return None
    logger.warning_once(f"{_shown(path)}; options given win over it, and --config takes another")
    return path


def config_named(name: str) -> Path:
    """Return the file that `--config` names: the user's own, else one of the packaged recipes.

    Args:
        name: A path, or a recipe as `oxford_pets/efficientnet_b7.yaml`, with `recipes/` before it
            or without.
    """
    path = Path(name)
    recipe = RECIPES / path.as_posix().removeprefix("recipes/")
    if path.exists() or not recipe.is_file():
        return path
    logger.warning_once(_shown(recipe))
    return recipe


def _shown(recipe: Path) -> str:
    return f"recipe: {Path(*recipe.parts[-3:])}"


def without_options(arguments: Sequence[str], *prefixes: str) -> list[str]:
    """Remove the options whose names begin with one of the prefixes, and their values."""
    kept, is_removed = [], False
    for argument in arguments:
        if argument.startswith("--"):
            is_removed = argument.removeprefix("--").replace("-", "_").startswith(prefixes)
        if not is_removed:
            kept.append(argument)
    return kept


def named(arguments: Sequence[str]) -> set[str]:
    """Return the names of the options among command-line arguments."""
    options = [argument for argument in arguments if argument.startswith("--")]
    return {option.split("=")[0].removeprefix("--").replace("-", "_") for option in options}


def without_rivals(given: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Remove from a file's arguments the rivals of options that are typed on the command line."""
    typed = named(argv)
    displaced = [other for pair in RIVALS for own, other in permutations(pair) if own in typed]
    return without_options(given, *displaced) if displaced else list(given)
