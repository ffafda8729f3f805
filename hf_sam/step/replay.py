"""Random state: saving it, restoring it, and repeating the random draws of a pass in another."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A generator that a module, a loss function or a trainer holds as its own.
Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


@dataclass(frozen=True)
class RandomState:
    """State of the libraries' random generators, and of those that the training holds."""

    cpu: Tensor  # (bytes,) torch's generator on the host
    devices: dict[torch.device, Tensor]  # (bytes,) torch's generator on each accelerator
    numpy: dict[str, Any]
    python: tuple[Any, ...]
    own: tuple[tuple[Generator, Any], ...] = ()  # further generators, each with its state


def random_state(
    devices: Iterable[torch.device], generators: Iterable[Generator] = ()
) -> RandomState:
    """Read the state of torch's generators (host and `devices`), numpy's and Python's.

    Args:
        devices: The devices that the model computes on; the host is always included.
        generators: Further ones, besides the global ones of the libraries.

    Returns:
        A copy of the states. No device is synchronised.
    """
    return RandomState(
        cpu=torch.get_rng_state(),
        devices={
            device: torch.get_device_module(device).get_rng_state(*_index(device))
            for device in set(devices)
            if device.type not in ("cpu", "meta")  # where offloaded parameters seem to be
        },
        numpy=np.random.get_state(legacy=False),
        python=random.getstate(),
        own=tuple((generator, _state_of(generator)) for generator in generators),
    )


def set_random_state(state: RandomState) -> None:
    """Restore the state of every generator in `state`."""
    torch.set_rng_state(state.cpu)
    for device, device_state in state.devices.items():
        torch.get_device_module(device).set_rng_state(device_state, *_index(device))
    np.random.set_state(state.numpy)
    random.setstate(state.python)
    for generator, own_state in state.own:
        _set_state(generator, own_state)


def is_generator(value: object) -> bool:
    """Return whether a value is a generator whose draws can be repeated."""
    return isinstance(value, Generator) and not isinstance(value, random.SystemRandom)


@contextmanager
def replayed(state: RandomState) -> Iterator[None]:
    """Context manager that repeats the random draws made since `state`, such as dropout masks.

    On exit the generators are restored to their state on entry, so later draws are those of a
    training step with one pass. The block must not draw more than the first pass did: its further
    draws would be repeated after it.

    Args:
        state: State of the generators before the first pass.

    Yields:
        Nothing.
    """
    after = random_state(state.devices, [generator for generator, _ in state.own])
    set_random_state(state)
    try:
        yield
    finally:
        set_random_state(after)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Context manager that seeds the generators of the host by these numbers, and restores them.

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


def _index(device: torch.device) -> tuple[torch.device, ...]:
    """MPS has a single device, and its functions take none."""
    return () if device.type == "mps" else (device,)


def _state_of(generator: Generator) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()


def _set_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)
