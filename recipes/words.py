"""Words of a command line: those that a recipe stands for, and those that are left out."""

import difflib
import json
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import yaml
from tasks import TASKS
from transformers.utils import logging

# Pairs of options that say the same thing in two ways.
RIVALS = (
    ("num_train_epochs", "max_steps"),
    ("crop_scale", "crop_padding"),
    ("batch_size", "gradient_accumulation_steps"),
)
logger = logging.get_logger("finetune")


def words_of(path: Path, names: set[str]) -> list[str]:
    """Return the file's options as words of a command line, which the parser checks.

    Args:
        path: The file.
        names: Of all options there are.

    Raises:
        ValueError: If the file cannot be read, or names an option that there is not.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(
            f"`--config` {str(path)!r} cannot be read as YAML ({' '.join(str(error).split())}): "
            "check the path, and that it has `option: value` lines."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"`--config` must hold `option: value` lines, got {str(path)!r}.")
    words: list[str] = []
    for name, value in values.items():
        if name not in names:
            raise ValueError(f"unknown option {name!r} in {str(path)!r}{near(str(name), names)}")
        if value is None:
            raise ValueError(f"option {name!r} in {str(path)!r} must have a value: leave it out.")
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return words


def near(name: str, names: set[str]) -> str:
    """Return the end of a message about an unknown option: the one that may be meant."""
    found = difflib.get_close_matches(name.split("=")[0], names, n=1)
    return f": did you mean --{found[0]}?" if found else ": see --help."


def recipe_of(dataset: str | None) -> Path | None:
    """Return a known data set's recipe for one GPU and one evening, if it has one, and say so."""
    path = Path(__file__).parent / str(dataset) / "efficientnet_b0.yaml"
    if dataset not in TASKS or not path.is_file():
        return None
    shown = Path(*path.parts[-3:])
    logger.warning_once(f"recipe: {shown}; options given win over it, and --config takes another")
    return path


def without_options(words: Sequence[str], *beginnings: str) -> list[str]:
    """Leave out the options whose names begin with one of these, and their values."""
    kept, is_left_out = [], False
    for word in words:
        if word.startswith("--"):
            is_left_out = word.removeprefix("--").replace("-", "_").startswith(beginnings)
        if not is_left_out:
            kept.append(word)
    return kept


def without_rivals(given: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Leave out of a file's words what a word typed by hand stands in for."""
    typed = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in argv}
    displaced = [other for pair in RIVALS for own, other in permutations(pair) if own in typed]
    return without_options(given, *displaced) if displaced else list(given)
