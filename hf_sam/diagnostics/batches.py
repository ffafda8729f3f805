"""Batches of examples: collecting them, and splitting them into groups of m."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from accelerate.utils.operations import recursively_apply
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A batch, or some rows of one."""

    batch: Any  # tensors in mappings, lists or tuples; the first dimension counts examples
    examples: int


def collect(batches: Iterable[Any], most: int | None) -> list[Part]:
    """Fetch batches into a list.

    Args:
        batches: A data loader, or the like.
        most: Largest number of batches; None for all.

    Raises:
        ValueError: If there is none, or `most` is below 1.
    """
    if most is not None and most < 1:
        raise ValueError(f"`max_batches` must be >= 1, got {most}: leave it out for all batches.")
    parts = [Part(batch, _count(batch)) for batch in islice(batches, most)]
    if not parts:
        raise ValueError("sharpness needs examples, got a data loader without any: check the data.")
    if not all(part.examples for part in parts):
        empty = next(part.batch for part in parts if not part.examples)
        raise ValueError(
            "a batch must hold tensors whose first dimension counts its examples, got "
            f"{type(empty).__name__} without one: collate to tensors."
        )
    return parts


def shares(parts: Sequence[Part]) -> Iterator[tuple[Part, float]]:
    """Yield each part with its fraction of the examples, the weight of its mean loss."""
    examples = sum(part.examples for part in parts)
    for part in parts:
        yield part, part.examples / examples


def groups_of(parts: Sequence[Part], m: int) -> list[list[Part]]:
    """Split examples into groups of m; the last group may be smaller.

    Args:
        parts: The examples, in this order.
        m: Number of examples that share one perturbation.

    Returns:
        The parts of each group; a batch that spans groups is split.
    """
    examples = sum(part.examples for part in parts)
    if not 1 <= m <= examples:
        raise ValueError(f"`m` must be from 1 to {examples}, the number of examples, got {m}.")
    groups: list[list[Part]] = [[]]
    free = m
    for part in parts:
        start = 0
        while start < part.examples:
            if free == 0:
                groups.append([])
                free = m
            taken = min(free, part.examples - start)
            groups[-1].append(_rows(part, start, start + taken))
            start, free = start + taken, free - taken
    return groups


def _rows(part: Part, start: int, stop: int) -> Part:
    if stop - start == part.examples:
        return part

    def cut(x: Tensor) -> Tensor:
        return x[start:stop] if x.dim() and len(x) == part.examples else x

    return Part(recursively_apply(cut, part.batch), stop - start)


def _count(batch: Any) -> int:
    """Return the length of the first tensor that has one, or 0."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 0
    if isinstance(batch, Mapping):
        return _count(list(batch.values()))
    if isinstance(batch, list | tuple):
        return next(filter(None, map(_count, batch)), 0)
    return 0
