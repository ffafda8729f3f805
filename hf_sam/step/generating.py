"""Recognise a Trainer that generates texts while it trains: a second pass would see other ones."""

import inspect
from collections.abc import Iterator
from types import CodeType

# Where a Trainer makes its batches and its losses.
BEGINNINGS = ("get_train_dataloader", "_prepare_inputs", "training_step", "compute_loss")
# What is called to generate, and what trl's trainers take texts from that are generated meanwhile.
SIGNS = frozenset({"generate", "rollout_queue"})


def generates(kind: type) -> bool:
    """Say whether methods of a class that lead to its batches or losses call `generate`.

    Judged by the names in their code, from method to method: what transformers' own classes do is
    not looked at, and an evaluation may generate.

    Args:
        kind: A subclass of Trainer.
    """
    seen: set[str] = set()
    left = list(BEGINNINGS)
    while left:
        name = left.pop()
        seen.add(name)
        names = {found for code in _codes(kind, name) for found in _names_in(code)}
        if names & SIGNS:
            return True
        left += names - seen - set(left)
    return False


def _codes(kind: type, name: str) -> Iterator[CodeType]:
    """Yield the code of each method of a name, of a class and those it is made from."""
    for base in kind.__mro__:
        if name in vars(base) and not base.__module__.startswith("transformers."):
            method = vars(base)[name]
            code = getattr(inspect.unwrap(getattr(method, "__func__", method)), "__code__", None)
            if code is not None:
                yield code


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
