"""Models that draw or remember in a forward pass, each in another way."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cases import CLASSES, FEATURES, build, queue
from torch import Tensor, nn
from torch.nn.utils import parametrizations

SMALL = 1e-12  # epsilon in float64: beside it the passes differ by their beginnings only


class Stateful(nn.Module):
    """Logits shifted by a draw or a memory, which `forward` asks `shift` for."""

    counted_once: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.layer(x) + self.shift(x), labels)}

    def shift(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class BoundAnew(Stateful):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(FEATURES))

    def shift(self, x: Tensor) -> Tensor:
        self.centre = 0.5 * self.centre + 0.5 * x.mean(dim=0)
        return self.centre[:CLASSES]


class Growing(Stateful):
    """A buffer that another joins in the first pass, and that grows in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(0))

    def shift(self, x: Tensor) -> Tensor:
        if not hasattr(self, "total"):
            self.register_buffer("total", torch.zeros((), dtype=x.dtype))
        self.seen.resize_(len(self.seen) + 1)[-1] = x.mean()
        self.total += self.seen.mean()
        return self.total * torch.arange(CLASSES)


class BeginsLate(Stateful):
    """A bank that is left alone at first, as in a warm-up."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        self.register_buffer("bank", torch.zeros(CLASSES))

    def shift(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes > 3:
            self.bank.add_(x[:, :CLASSES].mean(dim=0))
        return self.bank.clone()


class BehindTorchsBack(Stateful):
    """Written to through `.data`, which torch does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(CLASSES))

    def shift(self, x: Tensor) -> Tensor:
        self.bank.data.add_(x[:, :CLASSES].mean(dim=0))
        return self.bank.clone()


class BehindTorchsBackLater(BeginsLate):
    def shift(self, x: Tensor) -> Tensor:
        self.passes.data.add_(1)
        if self.passes > 3:
            self.bank.data.add_(x[:, :CLASSES].mean(dim=0))
        return self.bank.clone()


class OwnGenerator(Stateful):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def shift(self, x: Tensor) -> Tensor:
        return torch.randn(CLASSES, generator=self.generator, dtype=x.dtype)


class OtherGenerators(Stateful):
    """numpy's and Python's, in a container, made in the first pass."""

    def shift(self, x: Tensor) -> Tensor:
        if not hasattr(self, "draws"):
            self.draws = {"numpy": np.random.default_rng(0), "python": [random.Random(0)]}
        shift = self.draws["numpy"].normal() + self.draws["python"][0].random()
        return shift * torch.arange(CLASSES)


class Counts(Stateful):
    counted_once = ("passes",)

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def shift(self, x: Tensor) -> Tensor:
        self.passes += 1
        return torch.sin(self.passes * torch.arange(CLASSES))


class Remembers(Stateful):
    """A hidden state with its graph, and a list that grows."""

    counted_once = ("hidden", "seen")

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.seen = None, []

    def shift(self, x: Tensor) -> Tensor:
        before = 0.0 if self.hidden is None else self.hidden.detach()
        self.hidden = torch.tanh(self.layer(x).mean(dim=0) + before)
        self.seen.append(self.hidden.detach())
        return self.hidden + len(self.seen)


def spectral() -> nn.Module:
    model = build("mlp")
    parametrizations.spectral_norm(model.body[0])
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a queue": queue,
    "spectral norm": spectral,
    **{kind.__name__: kind for kind in Stateful.__subclasses__()},
    BehindTorchsBackLater.__name__: BehindTorchsBackLater,
}


# A generator that the first pass makes has no state before it.
MADE_LATE = {OtherGenerators.__name__}


def plain_step(self: Any, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
    loss = self.compute_loss(model, self._prepare_inputs(inputs))
    self.accelerator.backward(loss)
    return loss.detach()
