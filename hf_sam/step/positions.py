"""How far an iterator has come, found out without taking anything from it."""

import gc
import io
import operator
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

DEPTH = 3  # iterators within iterators, as of `cycle`, `zip` and generators


class Position(NamedTuple):
    """What changes when an iterator is advanced; equal for one that has not moved."""

    left: int  # entries that it says are left, -1 where it does not say
    yielded: int | None  # batches that torch's data loaders have given
    local: tuple[tuple[str, int], ...]  # a generator's variables, by the ids of their values
    within: tuple[Any, ...]  # positions of the iterators it takes from, lengths of what it keeps


def is_position_known(value: Any) -> bool:
    """Whether a value is an iterator of which `position_of` can say something; files are not."""
    return isinstance(value, Iterator) and not isinstance(value, io.IOBase)


def position_of(iterator: Iterator[Any], depth: int = DEPTH) -> Position:
    """Return how far an iterator has come, as far as that can be seen from outside."""
    frame = iterator.gi_frame if isinstance(iterator, types.GeneratorType) else None
    variables = {} if frame is None else frame.f_locals  # until 3.13 kept alive by the generator
    held = list(variables.values()) if variables else gc.get_referents(iterator)
    held += [x for several in held if isinstance(several, tuple) for x in several]  # of `zip`
    inner = [x for x in held if is_position_known(x) and x is not iterator]
    kept = [len(x) for x in held if isinstance(x, list)]  # `cycle` keeps what it has given
    return Position(
        left=_left(iterator),
        yielded=getattr(iterator, "_num_yielded", None),
        local=tuple((name, id(x)) for name, x in variables.items()),
        within=(*kept, *(position_of(x, depth - 1) for x in inner if depth > 0)),
    )


def _left(iterator: Iterator[Any]) -> int:
    try:
        return operator.length_hint(iterator, -1)
    except Exception:  # a user's `__len__` may refuse, as that of an endless sampler
        return -1
