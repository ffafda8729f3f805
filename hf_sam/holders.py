"""Who holds what a training step may change: modules, the loss function, the trainer itself."""

import functools
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch import Tensor, nn

from .replay import Generator, is_generator

# Objects of these hold nothing of a pass, or what they hold is known.
LIBRARIES = sys.stdlib_module_names | {"torch", "transformers", "accelerate", "datasets", "numpy"}
LIBRARIES |= {__name__.partition(".")[0]}
# Attributes of a Trainer that no pass uses; the model is looked at first.
NOT_IN_A_PASS = frozenset({"train_dataset", "eval_dataset", "data_collator", "callback_handler"})
# Modules of these count their own passes.
WRAPPERS = ("torch.nn.parallel.", "torch.distributed.", "torch._dynamo.")
DEPTH = 3  # of containers and objects within each other
MOST = 64  # entries of a container that are looked at
OWN_OF_MODULES = frozenset(vars(nn.Module()))


@dataclass
class Holders:
    """What was found from a model and its trainer on."""

    modules: dict[str, nn.Module] = field(default_factory=dict)  # the model's and all others
    objects: dict[str, object] = field(default_factory=dict)  # others: the trainer, a loss function
    generators: list[Generator] = field(default_factory=list)
    names: dict[Tensor, str] = field(default_factory=dict)  # of parameters

    @classmethod
    def of(cls, model: nn.Module, trainer: object) -> "Holders":
        """Look through a model and all that a trainer holds, in attributes or in closures.

        Args:
            model: Unwrapped. Its own modules have no name before theirs.
            trainer: Its attributes' names stand before the names of what they hold.
        """
        found = cls()
        seen: set[int] = set()
        for name, value in [("", model), *attributes(trainer).items()]:
            if name not in NOT_IN_A_PASS:
                found._visit(name, value, seen, depth=DEPTH)
        found.objects["trainer"] = trainer
        return found

    def attributes(self) -> Iterator[tuple[str, object, dict[str, Any]]]:
        """Yield name, holder and plain attributes: no modules, parameters or buffers."""
        for name, holder in [*self.objects.items(), *self.modules.items()]:
            yield name, holder, attributes(holder)

    def _visit(self, name: str, value: Any, seen: set[int], *, depth: int) -> None:
        if id(value) in seen or depth < 0:
            return
        if is_generator(value):
            seen.add(id(value))
            self.generators.append(value)
        elif isinstance(value, Tensor):
            if isinstance(value, nn.Parameter) or (value.requires_grad and value.is_leaf):
                self.names.setdefault(value, name)
        elif isinstance(value, nn.Module):
            for below, module in value.named_modules(prefix=name):
                if id(module) not in seen:
                    seen.add(id(module))
                    self.modules[below] = module
                    self._visit_all(below, module._parameters | attributes(module), seen, depth)
        else:
            inner = _inner(value)
            if inner:
                seen.add(id(value))
            if inner and not isinstance(value, CONTAINERS):
                self.objects[name] = value
            self._visit_all(name, inner, seen, depth)

    def _visit_all(self, name: str, inner: Mapping[str, Any], seen: set[int], depth: int) -> None:
        for below, value in inner.items():
            self._visit(f"{name}.{below}" if name else below, value, seen, depth=depth - 1)


CONTAINERS = (Mapping, list, tuple, functools.partial, types.MethodType, types.FunctionType)


def attributes(holder: object) -> dict[str, Any]:
    """Return an object's own attributes; of a module those that `nn.Module` does not know."""
    own = getattr(holder, "__dict__", {})
    if not isinstance(holder, nn.Module):
        return dict(own)
    if type(holder).__module__.startswith(WRAPPERS):
        return {}
    return {name: value for name, value in own.items() if name not in OWN_OF_MODULES}


def _inner(value: Any) -> dict[str, Any]:
    """Return what a container, a callable or an object of the user's own class holds, by name."""
    if isinstance(value, Mapping):
        return {str(key): item for key, item in islice(value.items(), MOST)}
    if isinstance(value, list | tuple):
        return {str(index): item for index, item in enumerate(value[:MOST])}
    if isinstance(value, functools.partial):
        return {"func": value.func, **_inner(value.args), **value.keywords}
    if isinstance(value, types.MethodType):
        return {"self": value.__self__}
    if isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        return {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
    is_users = str(type(value).__module__).partition(".")[0] not in LIBRARIES
    return attributes(value) if is_users and not isinstance(value, type) else {}


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
