"""Modules whose generators lie where a search has to look for them."""

import threading
import types
from dataclasses import dataclass
from typing import Any

import torch
from cases import CLASSES
from stateful import Stateful
from torch import Tensor


def normal(generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(CLASSES, generator=generator, dtype=like.dtype)


class DrawsFromNamespace(Stateful):
    def __init__(self) -> None:
        super().__init__()
        self.bag = types.SimpleNamespace(draws=torch.Generator().manual_seed(0))

    def shift(self, x: Tensor) -> Tensor:
        return normal(self.bag.draws, x)


class DrawsByThread(DrawsFromNamespace):
    def __init__(self) -> None:
        super().__init__()
        self.bag = threading.local()
        self.bag.draws = torch.Generator().manual_seed(0)


@dataclass(slots=True)
class Slots:
    draws: torch.Generator


class DrawsFromSlots(DrawsFromNamespace):
    def __init__(self) -> None:
        super().__init__()
        self.bag = Slots(torch.Generator().manual_seed(0))


OF_THIS_FILE = torch.Generator()


class DrawsFromTheFile(Stateful):
    """As in a notebook."""

    def __init__(self) -> None:
        super().__init__()
        OF_THIS_FILE.manual_seed(0)

    def shift(self, x: Tensor) -> Tensor:
        return normal(OF_THIS_FILE, x)


class DrawsInHook(Stateful):
    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.layer.register_forward_hook(lambda _, inputs, out: out + normal(draws, out))

    def shift(self, x: Tensor) -> Tensor:
        return torch.zeros(CLASSES, dtype=x.dtype)


class DrawsInCompositions(Stateful):
    """A chain of transforms in a chain of transforms."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = Chain(Chain(Draws()))

    def shift(self, x: Tensor) -> Tensor:
        return self.chain(x)


class Draws:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, x: Tensor) -> Tensor:
        return normal(self.generator, x)


class Chain:
    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __call__(self, x: Tensor) -> Tensor:
        return self.parts[0](x)


GENERATORS = [
    *(DrawsFromNamespace, DrawsByThread, DrawsFromSlots, DrawsFromTheFile, DrawsInHook),
    DrawsInCompositions,
]
