"""What a second forward pass would repeat or spoil: random draws and running statistics."""

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RandomState:
    """Where each generator stands that a forward pass may draw from."""

    cpu: Tensor  # (bytes,) torch's generator on the host
    devices: dict[torch.device, Tensor]  # (bytes,) torch's generator on each accelerator
    numpy: dict[str, Any]
    python: tuple[Any, ...]


def random_state(devices: Iterable[torch.device]) -> RandomState:
    """Read the state of torch's generators (host and `devices`), numpy's and Python's.

    Args:
        devices: The devices that the model computes on; the host is always included.

    Returns:
        A copy of the states, which later draws do not change. No device is synchronised.
    """
    return RandomState(
        cpu=torch.get_rng_state(),
        devices={
            device: torch.get_device_module(device).get_rng_state(*_index(device))
            for device in set(devices)
            if device.type != "cpu"
        },
        numpy=np.random.get_state(legacy=False),
        python=random.getstate(),
    )


def set_random_state(state: RandomState) -> None:
    """Put every generator of `state` back to where it stood."""
    torch.set_rng_state(state.cpu)
    for device, device_state in state.devices.items():
        torch.get_device_module(device).set_rng_state(device_state, *_index(device))
    np.random.set_state(state.numpy)
    random.setstate(state.python)


@contextmanager
def replayed(state: RandomState) -> Iterator[None]:
    """Repeat the draws made since `state`: the same dropout and drop-path masks in both passes.

    On leaving the generators stand where they stood on entering, so the draws that follow are those
    of a training step with one pass. Hence not for a block that draws more than the first pass: its
    further draws would be drawn once more.

    Args:
        state: The generators before the first pass.

    Yields:
        Nothing.
    """
    after = random_state(state.devices)
    set_random_state(state)
    try:
        yield
    finally:
        set_random_state(after)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Draw what these numbers determine, whatever was drawn before; then go on as if nothing was.

    Args:
        *numbers: For instance a seed, an epoch and an index; not negative.

    Yields:
        Nothing.
    """
    before = random_state([])
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        set_random_state(before)


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


@contextmanager
def counters_kept(owner: object, names: Iterable[str]) -> Iterator[None]:
    """Undo what the block counts in these attributes, where `owner` has them.

    Args:
        owner: The object that counts.
        names: Of attributes that can be copied deeply.

    Yields:
        Nothing.
    """
    kept = {name: copy.deepcopy(vars(owner)[name]) for name in names if name in vars(owner)}
    try:
        yield
    finally:
        vars(owner).update(kept)


class Buffers:
    """The buffers of a model, remembered again and again in the same memory: one copy of them."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Remember nothing yet.

        Args:
            modules: Those whose own buffers are meant.
        """
        self._owners = [module._buffers for module in modules]
        self._found: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
        self._writable: list[Tensor] = []
        self._saved: list[Tensor] = []

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Remember, and put back on leaving."""
        self.remember()
        try:
            yield
        finally:
            self.put_back()

    @torch.no_grad()
    def remember(self) -> None:
        """Remember the tensors and their values, in place of what was remembered before."""
        if not self._is_current():
            self._found = [(own, name, own[name]) for own in self._owners for name in own]
            present = [buffer for _, _, buffer in self._found if buffer is not None]
            self._writable = [buffer for buffer in present if _is_writable(buffer)]
            self._saved = [torch.empty_like(buffer) for buffer in self._writable]
        if self._writable:
            torch._foreach_copy_(self._saved, self._writable)

    @torch.no_grad()
    def put_back(self) -> None:
        """Put back what was remembered last, any number of times."""
        for own, name, buffer in self._found:
            if own.get(name) is not buffer:  # a forward pass has bound another tensor to the name
                own[name] = buffer
        if self._writable:
            torch._foreach_copy_(self._writable, self._saved)

    def _is_current(self) -> bool:
        """Whether the model has the buffers that were found, in the shapes that they had."""
        return (
            len(self._found) == sum(map(len, self._owners))
            and all(own.get(name) is buffer for own, name, buffer in self._found)
            and all(x.shape == y.shape for x, y in zip(self._writable, self._saved, strict=True))
        )


def _is_writable(buffer: Tensor) -> bool:
    """Nothing writes in place into an expanded tensor, or into one of inference mode."""
    layout = zip(buffer.shape, buffer.stride(), strict=True)
    expanded = any(size > 1 and stride == 0 for size, stride in layout)
    return not (expanded or buffer.is_inference())


def _index(device: torch.device) -> tuple[torch.device, ...]:
    """MPS has a single device, and its functions take none."""
    return () if device.type == "mps" else (device,)
