"""Detects Trainers that generate text while training, where the second pass would see new text."""

import inspect
from collections.abc import Iterator
from types import CodeType

# The methods in which a Trainer makes its batches and its losses.
BEGINNINGS = ("get_train_dataloader", "_prepare_inputs", "training_step", "compute_loss")
# Names in code that generates, or (in trl) takes text that is generated in parallel.
SIGNS = frozenset({"generate", "rollout_queue"})
# Methods that make neither; their names are those of functions, as `torch.log`, too.
NOT_FOLLOWED = frozenset({"log", "evaluate", "predict", "prediction_step", "save_model"})


def generates(kind: type) -> bool:
    """Return whether the methods that make a class's batches or losses generate text.

    Judged by the names in their code, followed from method to method. The classes of transformers
    are skipped, and an evaluation may generate; so may a `training_step` around SAM's, as both
    passes are inside.

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
        left += names - NOT_FOLLOWED - seen - set(left)
    return False


def _codes(kind: type, name: str) -> Iterator[CodeType]:
    """Yield the code of a method in a class and in its bases."""
    bases = kind.__mro__
    if name == "training_step":  # SAM's calls those of the classes behind it, in each pass
        ours = [i for i, base in enumerate(bases) if base.__module__.startswith("hf_sam.")]
        bases = bases[max(ours, default=-1) + 1 :]
    for base in bases:
        if name in vars(base) and not base.__module__.startswith(("transformers.", "hf_sam.")):
            method = vars(base)[name]
            code = getattr(inspect.unwrap(getattr(method, "__func__", method)), "__code__", None)
            if code is not None:
                yield code


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
