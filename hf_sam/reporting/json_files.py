"""JSON files: written atomically, and checked when they are read."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .codec import decode

MOST_LEVELS = 20  # of nested lists and objects; our files have nine


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON atomically: a file that exists is complete."""
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        partial.write_text(json.dumps(_without_nan(values), indent=2, allow_nan=False) + "\n")
        partial.replace(path)
    finally:  # left over if the disk is full
        partial.unlink(missing_ok=True)


def read_json(
    path: Path, kind: Any, *, remedy: str, check: Callable[[Any], None] | None = None
) -> Any:
    """Read JSON as a dataclass, or as another type that `decode` takes.

    Args:
        path: The file.
        kind: The type of its content.
        remedy: What the user can do about a file that is truncated, edited or not ours.
        check: Checks the content beyond its type, and raises a ValueError.

    Raises:
        ValueError: If the file cannot be read or is invalid; names file, fault and remedy.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        _require_shallow(values)
        found = decode(kind, values)
        if check is not None:
            check(found)
        return found
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    except json.JSONDecodeError as error:
        fault = f"is no whole JSON ({error})"
    except UnicodeDecodeError:
        fault = "is no text"
    except RecursionError:
        fault = f"is nested more than {MOST_LEVELS} levels deep"
    except ValueError as error:
        fault = f"does not hold what it must: {error}"
    raise ValueError(f"{str(path)!r} {fault}: {remedy}.")


def _without_nan(values: Any) -> Any:
    """Replace nan and inf, which JSON does not have, by None."""
    if isinstance(values, Mapping):
        return {name: _without_nan(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _require_shallow(values: Any) -> None:
    """Raise a RecursionError if values are nested too deeply to be written and shown."""
    level, depth = [values], 0
    while level := [
        entry
        for value in level
        if isinstance(value, dict | list)
        for entry in (value.values() if isinstance(value, dict) else value)
    ]:
        depth += 1
        if depth > MOST_LEVELS:
            raise RecursionError
