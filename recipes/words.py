"""Words of a command line: read from a YAML file, checked for their names, left out again."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

import yaml


def read_config(path: Path, names: set[str]) -> list[str]:
    """Return the file's options as words of a command line, which the parser checks.

    Raises:
        ValueError: If the file cannot be read, or holds an option that is not among the names.
    """
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"`--config` {str(path)!r} cannot be read as YAML: {error}.") from error
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
    """Return the end of a message on an unknown name: the one that was probably meant."""
    close = difflib.get_close_matches(name.split("=")[0], names, n=1)
    return f": did you mean --{close[0]}?" if close else ": see --help."


def without_options(words: Sequence[str], *beginnings: str) -> list[str]:
    """Leave out the options whose names begin with one of these, and their values."""
    kept, is_left_out = [], False
    for word in words:
        if word.startswith("--"):
            is_left_out = word.removeprefix("--").replace("-", "_").startswith(beginnings)
        if not is_left_out:
            kept.append(word)
    return kept
