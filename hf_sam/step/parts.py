"""The parts of a model that a training step works on (parameters, buffers), found and cached."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..backends import Engine, Weights, engine_of
from .buffers import Buffers, Snapshot
from .counted import Counted, Values, unlogged
from .holders import Holders
from .replay import RandomState, is_generator, random_state

UNNAMED = "optimizer"  # prefix of the number of a parameter that only the optimizer holds


@dataclass(frozen=True)
class Start:
    """The state, besides the weights, in which both passes of a micro-batch begin."""

    draws: RandomState
    buffers: Snapshot
    counted: Values  # copies of what `counted_once` names


@dataclass(frozen=True)
class Parts:
    """What is trained and what a pass changes. Finding it takes as long as a small pass."""

    params: dict[str, Tensor]  # all of the model, by their names in it, and `outside`
    outside: dict[str, Tensor]  # in the optimizer, but not in the model
    others: list[Tensor]  # trained by something else, e.g. an optimizer in a callback
    watched: dict[str, Tensor]  # all parameters that a pass can reach, trained or not
    devices: set[torch.device]  # that passes draw on
    engine: Engine
    holders: Holders
    buffers: Buffers  # of all modules that a pass can reach
    counted: Counted
    trainable: dict[str, Tensor] = field(default_factory=dict)  # set by `at_this_step`

    @classmethod
    def of(
        cls, model: nn.Module, trainer: Any, engine: Engine, optimized: Iterable[Tensor]
    ) -> Self:
        """Search a model and what its trainer holds.

        Args:
            model: The model as it is trained, wrapped and compiled.
            trainer: The Trainer, with `counted_once`.
            engine: The engine that has prepared the model.
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
            # of a pass too: shards may lie on the host
            devices={trainer.accelerator.device, *(param.device for param in params.values())},
            engine=engine,
            holders=holders,
            buffers=Buffers(modules),
            counted=Counted(holders, trainer.counted_once, shared),
        )

    def at_this_step(self) -> Self:
        """Return the parts with what is trainable now: parameters may be frozen and unfrozen."""
        trainable = {name: param for name, param in self.params.items() if param.requires_grad}
        return replace(self, trainable=trainable)

    @cached_property
    def weights(self) -> Weights:
        """What the engine moves of the trainable parameters, by the same names."""
        return self.engine.weights(self.trainable)

    def start(self, buffers: Snapshot | None = None) -> Start:
        """Return the state in which the next pass begins.

        Args:
            buffers: A snapshot of this moment, if there is one already.
        """
        draws = random_state(self.devices, self.holders.generators)
        return Start(draws, buffers or self.buffers.snapshot(), self.counted.copied())

    @contextmanager
    def undone(self, start: Start) -> Iterator[None]:
        """Context manager that runs the block from a start, undoes its changes and drops its log.

        Args:
            start: The buffers and counters to begin with; `replayed` takes its random draws.
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
    """Return, by name, the optimizer's parameters that are not among the known ones."""
    ids = {id(param) for param in known.values()}
    found = [(i, param) for i, param in enumerate(optimized) if id(param) not in ids]
    names = {f"trainer.{holders.names.get(p, f'{UNNAMED}.{i}')}": p for i, p in found}
    assert not names.keys() & known.keys(), "a module of the model's is called trainer"
    return names


class PartsCache:
    """Caches the parts of a model until they may have changed.

    A change of the modules or of the optimizer's parameters is noticed at each step, and so are
    attributes that a pass adds, and modules and generators that replace others in the trainer and
    in objects. Everything else that a callback may replace is found at the start of an epoch.
    """

    def __init__(self) -> None:
        """Begin with an empty cache."""
        self._modules: list[nn.Module] = []  # held, so that no new module gets the id of one
        self._attributes: list[dict[str, Any]] = []  # of objects
        self._marks: tuple[list[int], list[int]] = [], []
        self._parts: Parts | None = None

    def forget(self) -> None:
        """Search again at the next step: the first one may have created modules and generators."""
        self._marks = [], []

    def drop_gathered(self) -> None:
        """Have the engine drop what an unfinished window has gathered."""
        if self._parts is not None:
            self._parts.engine.give_up()

    def parts_of(self, model: nn.Module, trainer: Any) -> Parts:
        """Return the parts of a model; search only if they may have changed.

        Args:
            model: The prepared model.
            trainer: The Trainer with its optimizer; without one, every call searches.
        """
        engine = engine_of(model) if self._parts is None else self._parts.engine
        optimizer = trainer.optimizer
        optimized = [] if optimizer is None else engine.optimized(optimizer)
        marks = self._marks_of(model, optimized)
        if self._parts is None or not optimized or self._marks != marks:
            if self._marks[0] != marks[0]:  # else it may know of passes that have been made
                engine = engine_of(model)
            self._parts = Parts.of(model, trainer, engine, optimized)
            holders = self._parts.holders
            self._modules = list(dict.fromkeys([*model.modules(), *holders.modules.values()]))
            self._attributes = [getattr(each, "__dict__", {}) for each in holders.objects.values()]
            self._marks = self._marks_of(model, optimized)
        return self._parts.at_this_step()

    def _marks_of(self, model: nn.Module, optimized: list[Tensor]) -> tuple[list[int], list[int]]:
        """Return numbers by which a change is noticed, faster than by searching.

        Returns:
            Those of modules and the optimizer's parameters, and those of attributes.
        """
        children = [id(child) for known in self._modules for child in known._modules.values()]
        made = [len(vars(module)) for module in self._modules]
        values = (value for own in self._attributes for value in own.values())
        held = [id(x) for x in values if isinstance(x, nn.Module) or is_generator(x)]
        return [id(model), *map(id, optimized), *children], [*made, *held]
