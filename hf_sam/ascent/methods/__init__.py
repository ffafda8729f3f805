"""Implements the methods of the SAM family, one file each, and parses their arguments.

A new method subclasses `Method` in a file of its own, is added to `METHODS` here, and needs a
reference implementation in `tests/support/oracles.py`.
"""

import dataclasses
import re

from .friendly_sam import FriendlySAM
from .gsam import GSAM
from .le_sam import LESAM
from .looksam import LookSAM
from .method import Memory, Method
from .msam import MSAM
from .rst import RST
from .s2sam import S2SAM
from .vasso import VaSSO
from .wsam import WSAM

__all__ = ["METHODS", "Memory", "Method", "method_of"]

NUMBER = re.compile(r"[+-]?(inf|(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)", re.IGNORECASE)
METHODS: dict[str, type[Method]] = {
    "sam": Method,
    "looksam": LookSAM,
    "msam": MSAM,
    "s2sam": S2SAM,
    "rst": RST,
    "friendly_sam": FriendlySAM,
    "vasso": VaSSO,
    "gsam": GSAM,
    "wsam": WSAM,
    "le_sam": LESAM,
}


def method_of(name: str, arguments: str | None) -> Method:
    """Return a method by its name, with its arguments.

    Args:
        name: From `METHODS`.
        arguments: `alpha=0.4,beta=1`, as `optim_args` is written; None for the defaults.

    Raises:
        ValueError: If a name is unknown or a value out of its range; lists the valid ones.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(
            f"`method` must be one of {', '.join(METHODS)}, got {name!r}: leave it out for SAM."
        )
    kind = METHODS[name]
    known = [field.name for field in dataclasses.fields(kind)]
    given = _read(arguments)
    for argument in given:
        if argument not in known:
            has = f"it has {', '.join(known)}" if known else "it has none, leave it out"
            raise ValueError(
                f"`method_args` must name arguments of {name}, got {argument!r}: {has}."
            )
    method = kind(**given)
    method.require_valid()
    return method


def _read(arguments: str | None) -> dict[str, float]:
    if arguments is None:
        return {}
    given: dict[str, float] = {}
    for pair in arguments.split(",") if isinstance(arguments, str) else [""]:
        key, _, value = (part.strip() for part in pair.partition("="))
        if not re.fullmatch(r"\w+", key) or key in given or not NUMBER.fullmatch(value):
            raise ValueError(
                "`method_args` must be written name=number,name=number, each name once, got "
                f"{arguments!r}: alpha=0.1, for instance."
            )
        given[key] = float(value)
    return given
