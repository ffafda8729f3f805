"""Checks that a pass changes no parameter, and warns of attributes that each pass changes."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Reversible
from contextlib import contextmanager
from itertools import count, islice
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from transformers.utils import logging

from ..ascent.shards import local
from .buffers import PLAIN, is_number_or_text
from .counted import counted_by
from .holders import MOST, Holders
from .parts import Parts
from .positions import Position, is_position_known, position_of
from .replay import is_generator

logger = logging.get_logger(__name__)
DEPTH = 3  # levels of nested containers that are compared
Marks = list[list[Any]]  # names of parameters, and what changes when one is written to


class Watch:
    """Checks the passes of a training: thoroughly at the first optimizer step, then cheaply.

    What the cheap check finds is compared thoroughly from then on.
    """

    def __init__(self, *, is_twice: bool = True) -> None:
        """Begin with the thorough check.

        Args:
            is_twice: Whether a micro-batch has two passes; with one, attributes may change.
        """
        self._is_close, self._is_twice = True, is_twice
        self._doubted: set[str] = set()  # parameters that were written to since: how, is not known
        self._changed: dict[str, str] = {}  # an attribute's holder, by the attribute's name
        self._advanced: dict[str, str] = {}  # likewise, of iterators
        self._exempt: set[str] = set()  # parameters that passes write to or move, as they are
        self._watched: dict[str, Tensor] = {}  # those of the parts that `_marked` is of
        self._names: list[str] = []  # of what can be marked
        self._marked: list[Tensor] = []  # aligned with the names
        self._has_pointer: list[bool] = []  # aligned

    @contextmanager
    def of_pass(self, parts: Parts, counted_once: Iterable[str]) -> Iterator[None]:
        """Context manager that compares parameters (at first attributes too) around a pass.

        Args:
            parts: The parts of the model.
            counted_once: Attributes that may change.

        Raises:
            ValueError: Naming a parameter that the pass has changed.
        """
        before = self._marks(parts)
        counted = frozenset(counted_once)
        is_state_seen = self._is_close and self._is_twice
        state = _state(parts.holders, counted) if is_state_seen else {}
        buffers = _buffer_marks(parts.holders) if is_state_seen else {}
        yield
        after = self._marks(parts)
        if before != after and (changed := self._changed_in(before, after)):
            raise ValueError(
                f"a pass must change no parameter, got one that changed `{changed[0]}`: under SAM "
                "that would count twice, or be lost. Let an optimizer of its own step in a "
                "callback (`on_optimizer_step`), keep what a forward pass moves (an average of "
                "weights) in buffers, or set `rho=0`."
            )
        if is_state_seen:
            now, buffers_now = _state(parts.holders, counted), _buffer_marks(parts.holders)
            for (place, name), (is_number, before_it) in state.items():
                if is_number and buffers.get(place) != buffers_now.get(place):
                    continue  # it is put back with the buffers
                if now.get((place, name), (None, None))[1] != before_it:
                    has_iterators = _has_position(before_it)
                    (self._advanced if has_iterators else self._changed)[name] = place

    def _marks(self, parts: Parts) -> Marks:
        """Return aligned lists: the names, and values that change when a parameter is written to.

        A write through `param.data` does not increase the version counter, so the thorough check
        adds its norm, and so does the quick one for what is doubted. It runs over all parameters
        four times a micro-batch.
        """
        held = parts.engine.held
        if self._is_close or self._watched is not parts.watched:
            self._watched = parts.watched
            left_out = set() if self._is_close else self._exempt
            named = parts.watched.items()
            found = {n: param for n, param in named if _has_mark(param) and n not in left_out}
            self._names = list(found)
            self._marked = list(found.values())
            self._has_pointer = [_is_plain(own) for own in held(self._marked)]
        owns = held(self._marked)
        # a DTensor counts the writes to it, and its part those to the part
        versions = [p._version + own._version for p, own in zip(self._marked, owns, strict=True)]
        plain = zip(owns, self._has_pointer, strict=True)
        pointers = [own.data_ptr() if has_pointer else 0 for own, has_pointer in plain]
        numbers: list[Any] = versions
        if self._is_close or self._doubted:
            told = zip(self._names, owns, versions, strict=True)
            numbers = [_numbers(own) if self._is_compared(n) else v for n, own, v in told]
        return [self._names, versions, pointers, numbers]

    def _is_compared(self, name: str) -> bool:
        return self._is_close or name in self._doubted

    def _changed_in(self, before: Marks, after: Marks) -> list[str]:
        """Name the parameters that have other values; one may have got its first marks meanwhile.

        A parameter may be moved, or written to, and keep its values: an LSTM packs its weights anew
        in each pass on a GPU, adversarial training puts weights back. What does so is not watched
        afterwards. What the quick check finds is doubted: the next pass that writes to it tells.
        """
        marks = {name: mark for name, *mark in zip(*after, strict=True)}
        changed = {n: mark for n, *mark in zip(*before, strict=True) if marks.get(n, mark) != mark}
        compared = {n: mark for n, mark in changed.items() if self._is_compared(n)}
        same = {n for n, mark in compared.items() if mark[-1] and marks[n][-1] == mark[-1]}
        if same:
            self._watched = {}  # to be marked anew, without these
        if self._is_twice or not self._is_close:  # a lone first pass may begin at epsilon = 0
            self._exempt |= same
        self._doubted = (self._doubted | changed.keys()) - compared.keys()
        return [name for name in compared if name not in same]

    def end_step(self) -> bool:
        """Warn of what the first optimizer step's passes changed; return whether this was it."""
        was_close, self._is_close = self._is_close, False
        if was_close and self._advanced:
            logger.warning(
                f"Each pass takes from {_listed(self._advanced)}, so that SAM's second pass gets "
                "what comes after the first one's. Take what both need in the data collator, or in "
                "a `training_step` of your own before `super().training_step`."
            )
        if was_close and self._changed:
            names = ", ".join(f'"{name}"' for name in sorted(self._changed))
            logger.warning(
                f"Each pass changes {_listed(self._changed)}, and SAM makes two. If later passes "
                "depend on what is kept there, have the second begin where the first did, and "
                f"count once: `counted_once = (*SAMTrainer.counted_once, {names})` in the class "
                "of the trainer."
            )
        return was_close


def _listed(attributes: Mapping[str, str]) -> str:
    return ", ".join(f"`{name}` of {holder}" for name, holder in sorted(attributes.items()))


def _has_position(value: Any) -> bool:
    """Whether the comparable form of an attribute is of an iterator, or of a container of some."""
    if isinstance(value, Position):
        return True
    return isinstance(value, list | tuple) and any(map(_has_position, value))


def _has_mark(param: Tensor) -> bool:
    """Whether a parameter can be told from a changed one.

    What is quantised is not trained, and may be packed anew by its first pass.
    """
    return not is_lazy(param) and not param.is_inference() and param.is_floating_point()


def _is_plain(tensor: Tensor) -> bool:
    """Whether torch's kernels can compute on a tensor; for packed and sparse ones some lack."""
    is_packed = tensor.is_meta or tensor.is_nested or tensor.is_quantized
    is_torchs = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    return is_torchs and not is_packed and tensor.layout == torch.strided


def _numbers(tensor: Tensor) -> tuple[str, ...]:
    """Return numbers that differ between almost any two tensors; synchronises."""
    if not _is_plain(tensor):
        return ()
    x = tensor.detach()
    is_counting = not (x.is_floating_point() or x.is_complex())
    x = x.float() if is_counting or x.dtype.itemsize == 1 else x  # float8 has no norm
    dtype = torch.float32 if x.device.type == "mps" else torch.float64  # which MPS has not
    norm = torch.linalg.vector_norm(x, dtype=x.dtype if x.is_complex() else dtype)
    return str(tuple(x.shape)), repr(x.sum().item()), repr(norm.item())


def _state(holders: Holders, counted_once: frozenset[str]) -> dict[tuple[str, str], Any]:
    """Return, by holder and name, whether an attribute is a number or text, and its value.

    The values are in comparable form.
    """
    known = {id(holder) for _, holder, _ in holders.attributes()}
    state = {}
    for name, holder, own in holders.attributes():
        counted = counted_once.union(counted_by(holder))
        place = _place_of(name)
        for attribute in own.keys() - counted:
            value = own[attribute]
            form = _comparable(value, known, DEPTH)
            state[place, attribute] = is_number_or_text(value), form
    return state


def _place_of(name: str) -> str:
    return "the trainer" if name == "trainer" else f"`{name}`" if name else "the model"


def _buffer_marks(holders: Holders) -> dict[str, list[Any]]:
    """Return, by place, what changes when a module's buffers are bound or written to."""
    return {
        _place_of(name): [(n, id(b), 0 if b is None else b._version) for n, b in buffers.items()]
        for name, module in holders.modules.items()
        if (buffers := module._buffers)
    }


def _comparable(value: Any, known: set[int], depth: int) -> Any:
    """Return a value in comparable form; None if it is no state or is compared elsewhere."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        is_output = value.requires_grad  # an output of the last pass, or a parameter
        return None if is_output else _numbers(local(value))
    if isinstance(value, np.memmap):
        return None
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.shape, crc32(np.ascontiguousarray(value).data)
    if isinstance(value, count):
        return repr(value)
    if is_position_known(value):
        return position_of(value)
    if id(value) in known or depth == 0 or isinstance(value, nn.Module) or is_generator(value):
        return None
    if isinstance(value, Collection) and not isinstance(value, type):
        return [_comparable(item, known, depth - 1) for item in _some_of(value)]
    return None


def _some_of(value: Collection[Any]) -> list[Any]:
    """Return the length and the first and last items of a collection; none if it refuses them."""
    try:
        some = list(islice(value, MOST))
        if isinstance(value, Reversible):
            some += islice(reversed(value), MOST)
        if isinstance(value, dict):
            some = list(islice(value.items(), MOST)) + list(islice(reversed(value.items()), MOST))
        elif isinstance(value, Mapping):
            some = [item for key in some for item in (key, value[key])]
        return [len(value), *some]
    except Exception:  # a user's own may compute its entries, or be closed
        return []
