"""What a training step works on, which it needs several times and which takes long to find."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..backends import Engine, Weights, engine_of
from .buffers import Buffers, Snapshot
from .counted import Counted, Values, unlogged
from .holders import Holders
from .replay import RandomState, random_state

UNNAMED = "optimizer"  # before the number of a parameter that nothing else holds


@dataclass(frozen=True)
class Start:
    """What a pass begins from, beside the weights: both passes of a micro-batch from the same."""

    draws: RandomState
    buffers: Snapshot
    counted: Values  # copies of what `counted_once` names


@dataclass(frozen=True)
class Parts:
    """What is trained and what a pass changes. To find it takes as long as a small pass."""

    params: dict[str, Tensor]  # all of the model by the names they have in it, and `outside`
    outside: dict[str, Tensor]  # that the optimizer holds beside the model's
    others: list[Tensor]  # that something else trains, as an optimizer in a callback
    watched: dict[str, Tensor]  # all parameters that a pass can reach, trained or not
    devices: set[torch.device]  # that parameters lie on
    engine: Engine
    holders: Holders
    buffers: Buffers  # of all modules that a pass can reach
    counted: Counted
    trainable: dict[str, Tensor] = field(default_factory=dict)  # by `at_this_step`
    weights: Weights = field(default_factory=dict)  # likewise: what the engine moves of them

    @classmethod
    def of(
        cls, model: nn.Module, trainer: Any, engine: Engine, optimized: Iterable[Tensor]
    ) -> Self:
        """Look through a model and what its trainer holds.

        Args:
            model: As it is trained, wrapped and compiled.
            trainer: With `counted_once`.
            engine: Of the model.
            optimized: The optimizer's parameters.
        """
        bare = trainer.accelerator.unwrap_model(model, keep_torch_compile=False)
        with engine.step():  # an evaluation may have left other weights there
            params = {n.replace("_orig_mod.", ""): param for n, param in bare.named_parameters()}
        holders = Holders.of(bare, trainer)
        outside = _outside(params, holders, optimized)
        params |= outside
        ids = set(map(id, params.values()))
        watched = {name: param for param, name in holders.names.items()} | params
        modules = holders.modules.values()
        shared = [*watched.values(), *modules, *holders.generators]
        return cls(
            params=params,
            outside=outside,
            others=[param for param in holders.names if id(param) not in ids],
            watched=watched,
            devices={param.device for param in params.values()},
            engine=engine,
            holders=holders,
            buffers=Buffers(modules),
            counted=Counted(holders, trainer.counted_once, shared),
        )

    def at_this_step(self) -> Self:
        """Return them with what is trained now: parameters may be frozen and thawed."""
        trainable = {name: param for name, param in self.params.items() if param.requires_grad}
        return replace(self, trainable=trainable, weights=self.engine.weights(trainable))

    def start(self, buffers: Snapshot | None = None) -> Start:
        """Remember what the next pass begins from.

        Args:
            buffers: Where a snapshot of this moment is there already.
        """
        draws = random_state(self.devices, self.holders.generators)
        return Start(draws, buffers or self.buffers.snapshot(), self.counted.copied())

    @contextmanager
    def undone(self, start: Start) -> Iterator[None]:
        """Begin the block at a start, undo what it changes and counts, and drop what it logs.

        Args:
            start: Where both are put back to; its draws are `replayed`.
        """
        buffers, counted = self.buffers.snapshot(), self.counted.now()
        try:
            self.buffers.put_back(start.buffers)
            self.counted.put(start.counted)
            with unlogged(self.holders.objects["trainer"]):
                yield
        finally:
            self.buffers.put_back(buffers)
            self.counted.put(counted)


def _outside(
    known: dict[str, Tensor], holders: Holders, optimized: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Name the parameters that an optimizer holds beside the known ones."""
    ids = {id(param) for param in known.values()}
    found = [(i, param) for i, param in enumerate(optimized) if id(param) not in ids]
    names = {f"trainer.{holders.names.get(p, f'{UNNAMED}.{i}')}": p for i, p in found}
    assert not names.keys() & known.keys(), "a module of the model's is called trainer"
    return names


class Walk:
    """Remembers the parts of a model while it has the same modules and optimized parameters."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._modules: list[nn.Module] = []  # held, so that no other can take the place of one
        self._ids: list[int] = []
        self._parts: Parts | None = None

    def forget(self) -> None:
        """Look anew at the next step: the first one may have made modules and generators."""
        self._parts = None

    def parts_of(self, model: nn.Module, trainer: Any) -> Parts:
        """Return the parts of a model, and look for them only if they may have changed.

        Args:
            model: The prepared model.
            trainer: With its optimizer; without one they are looked for each time.
        """
        engine = engine_of(model) if self._parts is None else self._parts.engine
        optimizer = trainer.optimizer
        optimized = [] if optimizer is None else engine.optimized(optimizer)
        if self._parts is None or not optimized or self._ids != self._ids_of(model, optimized):
            self._parts = Parts.of(model, trainer, engine_of(model), optimized)
            self._modules = list(model.modules())
            self._ids = self._ids_of(model, optimized)
        return self._parts.at_this_step()

    def _ids_of(self, model: nn.Module, optimized: list[Tensor]) -> list[int]:
        """Say what the parts depend on, more quickly than `model.modules()` finds them."""
        children = [id(child) for known in self._modules for child in known._modules.values()]
        return [id(model), *children, *map(id, optimized)]
