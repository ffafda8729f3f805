"""Conversion of dataclasses with arrays to JSON and back, checking each value against its type."""

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray


def encode(value: Any) -> Any:
    """Convert a dataclass, or what is in one, to JSON types: arrays become lists."""
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): encode(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [encode(entry) for entry in value]
    return value


def decode(kind: Any, value: Any, at: str = "") -> Any:
    """Convert JSON types back to what `encode` was given, by its type.

    Args:
        kind: A dataclass, or the type of one of its fields.
        value: From JSON, where null also stands for nan and inf.
        at: Its position in the whole, for error messages.

    Raises:
        ValueError: Naming the entry that is missing, unknown or of another type.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else decode(args[0], value, at)
    if is_dataclass(kind):
        return _dataclass(kind, _require(dict, value, at), at)
    if origin is ARRAY:
        return _array(_require(list, value, at), at)
    if origin in (dict, Mapping):
        entries = _require(dict, value, at).items()
        return {_key(args[0], n, at): decode(args[1], x, _in(at, n)) for n, x in entries}
    if origin in (tuple, list, Sequence):
        listed = enumerate(_require(list, value, at))
        found = [decode(args[0], entry, f"{at}[{i}]") for i, entry in listed]
        return tuple(found) if origin is tuple else found
    if kind is float:
        return math.nan if value is None else _number(_require(float, value, at), at)
    return _require(kind, value, at)


ARRAY = get_origin(NDArray[np.float64])  # an alias of its own from Python 3.12 and numpy 2.5 on
NAMES = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number"}
NAMES |= {bool: "true or false", type(None): "null"}
WHOLE = "the content"


def _require(kind: type, value: Any, at: str) -> Any:
    """Return the value if it has this JSON type, where true and false are no numbers."""
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{at or WHOLE} must be {NAMES[kind]}, and is {NAMES[type(value)]}")
    return value


def _in(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _dataclass(kind: Any, values: Mapping[str, Any], at: str) -> Any:
    declared = {field.name: field for field in fields(kind)}
    if unknown := [name for name in values if name not in declared]:
        raise ValueError(f"{at or WHOLE} has an entry {unknown[0]!r}, which is not known")
    for name, field in declared.items():
        if name not in values and field.default is field.default_factory is MISSING:
            raise ValueError(f"{at or WHOLE} has no entry {name!r}")
    hints = get_type_hints(kind)
    return kind(**{n: decode(hints[n], x, _in(at, n)) for n, x in values.items()})


def _number(value: float, at: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{at} is a number beyond all bounds") from error


def _array(values: list[Any], at: str) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{at} must be numbers, as many in each row") from error


def _key(kind: Any, name: str, at: str) -> Any:
    try:
        return kind(name)
    except ValueError as error:
        raise ValueError(f"{at or WHOLE} must have whole numbers as names, got {name!r}") from error
