"""The methods that a user can name, and how their arguments are read.

A method is one file, with its arguments in a frozen dataclass; `method.py` has the points at which
it may do otherwise than SAM, and `METHODS` the names.
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
    "gsam": GSAM,
    "wsam": WSAM,
    "le_sam": LESAM,
}


def method_of(name: str, arguments: str | None) -> Method:
    """Return the method that a user has named, with its arguments.

    Args:
        name: From `METHODS`.
        arguments: `alpha=0.4,beta=1`, as `optim_args` is written; None for the defaults.

    Raises:
        ValueError: Saying what is unknown or out of its range, and what there is.
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
