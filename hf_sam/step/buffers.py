"""Snapshots of modules' buffers, such as running statistics, and of the attributes beside them."""

import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .holders import OWN_OF_MODULES

# torch's kernels change these without increasing the tensor's version counter.
UNCOUNTED = frozenset({"running_mean", "running_var"})

# Packages whose modules have no attributes beside their buffers that a pass changes.
LIBRARIES = ("torch.", "deepspeed.")
PLAIN = (types.NoneType, bool, int, float, complex, str, bytes)  # values that cannot change within

# Buffers of at least this many entries are worth watching for changes instead of copying.
LARGE = 2**16

Bound = dict[str, Tensor | None]  # a module's buffers by name


@contextmanager
def running_stats_kept(model: nn.Module) -> Iterator[None]:
    """Context manager that restores running statistics, and all other buffers, on exit.

    All buffers, because a second pass also corrupts batch counts, spectral norms and moving
    codebooks, and the attributes of their modules that it binds anew, as the length of a cache that
    is a buffer. Setting a momentum to 0 instead would still count batches, and one overflow would
    turn a running mean into NaN.

    Args:
        model: The model whose buffers are restored.

    Yields:
        Nothing. Memory: one copy of the buffers.
    """
    with Buffers(model.modules()).kept():
        yield


@dataclass
class _Copy:
    """A buffer and a copy of its values at one moment."""

    buffer: Tensor
    values: Tensor  # of the buffer's shape at that moment
    version: int  # of the buffer when it last had these values

    @property
    def is_of_now(self) -> bool:
        """Whether the buffer's version counter and shape are unchanged since."""
        return self.buffer._version == self.version and self.buffer.shape == self.values.shape


class _Attributes:
    """A module's attributes that are numbers or texts, beside its buffers at one moment."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self._names, self._values = module, set(vars(module)), _numbers_of(module)
        tensors = (value for value in self._values.values() if isinstance(value, Tensor))
        self._copies = [(tensor, tensor.clone()) for tensor in tensors if _is_writable(tensor)]

    def put_back(self) -> None:
        attributes = vars(self.module)
        for name in _numbers_of(self.module).keys() - self._names:
            del attributes[name]
        for name, value in self._values.items():
            if is_number_or_text(attributes.get(name)):
                attributes[name] = value
        for tensor, copy in self._copies:
            tensor.copy_(copy)


@dataclass(frozen=True)
class Snapshot:
    """All buffers at one moment; snapshots share the copies of buffers that have not changed."""

    known: frozenset[int]  # ids of the modules' dictionaries of buffers
    bound: dict[int, tuple[Bound, Bound]]  # by id: those that are not empty, and their entries
    beside: list[_Attributes]
    copies: dict[int, _Copy]  # by the buffer's id


class Buffers:
    """Takes and restores snapshots of modules' buffers, and of the attributes beside them.

    A number or text that a module keeps as an attribute may say what its buffers hold, as how far a
    table is filled: where its buffers have changed, so are these put back.

    Until `look` has seen a pass, every snapshot copies all buffers. After that, large buffers that
    the pass did not change (a mask, a table of positions) are copied again only if their version
    counter has increased. Small ones always are, as a write through `.data` does not increase it.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Find the buffers; nothing is copied yet.

        Args:
            modules: All modules, as each gives its own buffers only.
        """
        modules = list(modules)
        self._modules = [module for module in modules if _is_users(module)]
        own = (module._buffers for module in modules)  # TorchScript's cannot be bound anew
        self._owners: list[Bound] = [b if isinstance(b, dict) else dict(b.items()) for b in own]
        self._known = frozenset(map(id, self._owners))
        self._now: dict[int, _Copy] = {}  # by id: the copies made or restored last
        self._is_seen = False  # whether `look` has seen a pass
        self._still: dict[int, Tensor] = {}  # by id: buffers whose version shows every change

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Context manager that restores the buffers on exit."""
        before = self.snapshot()
        try:
            yield
        finally:
            self.put_back(before)

    @torch.no_grad()
    def snapshot(self) -> Snapshot:
        """Return a snapshot of the buffers. Memory: a copy of those that may have changed."""
        bound = {id(own): (own, dict(own)) for own in self._owners if own}
        buffers = {id(b): b for own in self._owners for b in own.values() if b is not None}
        copies = {}
        for key, buffer in buffers.items():
            known = self._now.get(key)
            if known is not None and self._is_known(known):
                copies[key] = known
            elif _is_writable(buffer):
                copies[key] = _Copy(buffer, torch.empty_like(buffer), buffer._version)
        made = [copy for key, copy in copies.items() if copy is not self._now.get(key)]
        if made:
            torch._foreach_copy_([copy.values for copy in made], [copy.buffer for copy in made])
        self._now = copies
        # after the first step no module is expected to register its first buffer
        with_buffers = [m for m in self._modules if m._buffers or not self._is_seen]
        beside = [_Attributes(module) for module in with_buffers]
        return Snapshot(self._known, bound, beside, copies)

    @torch.no_grad()
    def put_back(self, snapshot: Snapshot) -> None:
        """Restore a snapshot, both the tensors and their values; works any number of times."""
        for beside in snapshot.beside:
            if _has_changed(beside.module._buffers, snapshot):
                beside.put_back()
        for own in self._owners:
            if own and id(own) in snapshot.known and id(own) not in snapshot.bound:
                own.clear()
        for own, bound in snapshot.bound.values():
            if own.keys() != bound.keys() or any(own[n] is not b for n, b in bound.items()):
                own.clear()
                own.update(bound)
        copies = snapshot.copies.values()
        changed = [copy for copy in copies if not (self._is_known(copy) or _is_same(copy))]
        for copy in changed:
            if copy.buffer.shape != copy.values.shape:
                copy.buffer.resize_(copy.values.shape)
        usual = [copy for copy in changed if not copy.buffer.is_conj()]
        if usual:
            torch._foreach_copy_([c.buffer for c in usual], [c.values for c in usual])
        for copy in changed:
            if copy.buffer.is_conj():  # which the function above refuses
                copy.buffer.copy_(copy.values)
        for copy in copies:
            copy.version = copy.buffer._version
        self._now = snapshot.copies

    def look(self, before: Snapshot) -> None:
        """Find, once, the large buffers that passes do not change; synchronises with the device.

        Args:
            before: Snapshot from before the passes.
        """
        if self._is_seen:
            return
        uncounted = {id(b) for own in self._owners for name, b in own.items() if name in UNCOUNTED}
        for key, copy in before.copies.items():
            is_watched = copy.values.numel() >= LARGE and key not in uncounted
            if is_watched and torch.equal(copy.buffer, copy.values):
                self._still[key] = copy.buffer
        self._is_seen = True

    def _is_known(self, copy: _Copy) -> bool:
        """Whether a buffer certainly still has the values of its copy."""
        return self._still.get(id(copy.buffer)) is copy.buffer and copy.is_of_now


def _has_changed(own: Bound, snapshot: Snapshot) -> bool:
    """Whether a module's buffers are others than at a snapshot, or have been written to since."""
    _, bound = snapshot.bound.get(id(own), (own, {}))
    if own.keys() != bound.keys() or any(own[name] is not b for name, b in bound.items()):
        return True
    copies = [snapshot.copies.get(id(b)) for b in own.values()]
    return not all(copy is None or copy.is_of_now for copy in copies)


def _is_users(module: nn.Module) -> bool:
    """Whether a module's class, or one that torch has made another of, is not torch's."""
    kinds = [kind for kind in type(module).__mro__ if issubclass(kind, nn.Module)]
    return not all(kind.__module__.startswith(LIBRARIES) for kind in kinds)


def _numbers_of(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if name not in OWN_OF_MODULES and is_number_or_text(value)
    }


def is_number_or_text(value: object) -> bool:
    """Whether a value is one, of Python's or a tensor without a dimension and a graph."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.requires_grad
    return isinstance(value, PLAIN)


def _is_same(copy: _Copy) -> bool:
    """Whether a buffer on the host has the values of its copy; it may be a file for reading only.

    On a device a comparison would synchronise, where a copy does not.
    """
    buffer, values = copy.buffer, copy.values
    is_strided = buffer.layout == torch.strided and not buffer.is_quantized
    is_cheap = buffer.device.type == "cpu" and is_strided
    return (
        is_cheap
        and buffer.shape == values.shape
        and torch.equal(_bytes_of(buffer), _bytes_of(values))
    )


def _bytes_of(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes, by which nan is itself and -0 is not 0."""
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _is_writable(buffer: Tensor) -> bool:
    """Whether a buffer can change in place; expanded, packed and inference-mode tensors cannot."""
    is_packed = buffer.is_nested or type(buffer).__torch_dispatch__ is not Tensor.__torch_dispatch__
    if is_packed or buffer.layout not in (torch.strided, torch.sparse_coo):
        return False
    layout = zip(buffer.shape, buffer.stride(), strict=True)
    expanded = any(size > 1 and stride == 0 for size, stride in layout)
    return not (expanded or buffer.is_inference())
