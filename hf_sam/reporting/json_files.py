"""JSON files: whole when they are written, and checked when they are read."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .codec import decode

MOST_LEVELS = 20  # of lists and objects in one another; ours have nine


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON, whole or not at all: a file that is there is complete."""
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        partial.write_text(json.dumps(_without_nan(values), indent=2, allow_nan=False) + "\n")
        partial.replace(path)
    finally:  # of a disk that is full
        partial.unlink(missing_ok=True)


def read_json(
    path: Path, kind: Any, *, remedy: str, check: Callable[[Any], None] | None = None
) -> Any:
    """Read JSON as a dataclass, or as another type that `decode` takes.

    Args:
        path: The file.
        kind: What it must hold.
        remedy: For the user of a file that is cut short, edited or of another program.
        check: Raises a ValueError for what the type does not say.

    Raises:
        ValueError: If it cannot be read or holds something else; names file, fault and remedy.
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
    """JSON has no number for what is not finite."""
    if isinstance(values, Mapping):
        return {name: _without_nan(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _require_shallow(values: Any) -> None:
    """Raise a RecursionError if values are nested deeper than what writes and draws them takes."""
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
