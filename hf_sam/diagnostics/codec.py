"""Frozen dataclasses with arrays as JSON, and back."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np


def encode(value: Any) -> Any:
    """Return what JSON can hold of a dataclass: arrays become lists."""
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): encode(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [encode(entry) for entry in value]
    return value


def decode(kind: Any, value: Any) -> Any:
    """Return what `encode` has encoded, by its type.

    Args:
        kind: A dataclass, or the type of one of its fields.
        value: From JSON, where null stands for what is not finite as well.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else decode(args[0], value)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        made: Any = kind
        return made(**{name: decode(hints[name], entry) for name, entry in value.items()})
    if origin is np.ndarray:
        return np.asarray(value, dtype=np.float64)
    if origin in (dict, Mapping):
        return {args[0](name): decode(args[1], entry) for name, entry in value.items()}
    if origin is tuple:
        return tuple(decode(args[0], entry) for entry in value)
    if origin in (list, Sequence):
        return [decode(args[0], entry) for entry in value]
    return float("nan") if kind is float and value is None else value
