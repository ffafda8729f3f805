"""The buffers of modules, remembered at one moment and put back at another."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# torch's kernels change these without counting it in the tensor's version.
UNCOUNTED = frozenset({"running_mean", "running_var"})

# Buffers of so many entries are worth being watched in place of being copied.
LARGE = 2**16

Bound = dict[str, Tensor | None]  # a module's buffers by name


@contextmanager
def running_stats_kept(model: nn.Module) -> Iterator[None]:
    """Undo what the block does to running statistics, by copying them back.

    All buffers are kept, not only those of known normalisation layers: batch counts, spectral
    norms and moving codebooks are spoilt by a second pass as well. Setting a momentum to 0 instead
    would still count batches and would let one overflow turn a running mean into NaN.

    Args:
        model: The model whose buffers are to be kept.

    Yields:
        Nothing. Memory: one copy of the buffers.
    """
    with Buffers(model.modules()).kept():
        yield


@dataclass
class _Copy:
    """A buffer and its values at one moment."""

    buffer: Tensor
    values: Tensor  # of the buffer's shape at that moment
    version: int  # of the buffer when it last had these values

    @property
    def is_of_now(self) -> bool:
        """Whether nothing that torch counts has been done to the buffer since."""
        return self.buffer._version == self.version and self.buffer.shape == self.values.shape


@dataclass(frozen=True)
class Snapshot:
    """All buffers at one moment; what did not change between two snapshots they share."""

    bound: dict[int, tuple[Bound, Bound]]  # a module's own dictionary by id, and what was in it
    copies: dict[int, _Copy]  # by the buffer's id


class Buffers:
    """The buffers of some modules, and copies of them.

    Until `look` has seen a pass, every snapshot copies all buffers. From then on large ones that
    the pass has left alone (a mask, a table of positions) are copied again only when torch has
    counted a change. Small ones always are: a write through `.data` is not counted.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Remember nothing yet.

        Args:
            modules: Those whose own buffers are meant.
        """
        self._owners: list[Bound] = [module._buffers for module in modules]
        self._now: dict[int, _Copy] = {}  # the copies that were made or put back last
        self._is_seen = False  # whether `look` has seen a pass
        self._still: dict[int, Tensor] = {}  # buffers that change only when torch counts it, by id

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Remember, and put back on leaving."""
        before = self.snapshot()
        try:
            yield
        finally:
            self.put_back(before)

    @torch.no_grad()
    def snapshot(self) -> Snapshot:
        """Return the buffers as they are now. Memory: a copy of those that may have changed."""
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
        return Snapshot(bound, copies)

    @torch.no_grad()
    def put_back(self, snapshot: Snapshot) -> None:
        """Bind the tensors of a snapshot again and give them their values, any number of times."""
        for own in self._owners:
            if own and id(own) not in snapshot.bound:
                own.clear()
        for own, bound in snapshot.bound.values():
            if own.keys() != bound.keys() or any(own[n] is not b for n, b in bound.items()):
                own.clear()
                own.update(bound)
        changed = [copy for copy in snapshot.copies.values() if not self._is_known(copy)]
        for copy in changed:
            if copy.buffer.shape != copy.values.shape:
                copy.buffer.resize_(copy.values.shape)
        if changed:
            torch._foreach_copy_([c.buffer for c in changed], [c.values for c in changed])
        for copy in changed:
            copy.version = copy.buffer._version
        self._now = snapshot.copies

    def look(self, before: Snapshot) -> None:
        """See once which large buffers passes have left alone; waits for the device.

        Args:
            before: Their values before the passes.
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
        """Whether a buffer surely has the values of a copy of it."""
        return self._still.get(id(copy.buffer)) is copy.buffer and copy.is_of_now


def _is_writable(buffer: Tensor) -> bool:
    """Nothing writes in place into an expanded or packed tensor, or into one of inference mode."""
    is_packed = buffer.is_nested or type(buffer).__torch_dispatch__ is not Tensor.__torch_dispatch__
    if is_packed or buffer.layout not in (torch.strided, torch.sparse_coo):
        return False
    layout = zip(buffer.shape, buffer.stride(), strict=True)
    expanded = any(size > 1 and stride == 0 for size, stride in layout)
    return not (expanded or buffer.is_inference())
