"""Counters that each pass increases: attributes named in `counted_once`, and log entries."""

import copy
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from .holders import Holders, attributes

# By the holder's id and the attribute's name: the holder, and the attribute's value.
Values = dict[tuple[int, str], tuple[Any, Any]]
# Of the losses and Trainers of trl and sentence-transformers.
COUNTED_ONCE = ("_metrics", "_stored_metrics", "_total_train_tokens", "accum_loss_components")
STATE = (bool, int, float, complex, str, Tensor, np.ndarray, list, tuple, dict, set)


class Counted:
    """Attributes of the trainer, loss functions and modules that must count only one pass."""

    def __init__(self, holders: Holders, names: Iterable[str], shared: Iterable[object]) -> None:
        """Find the objects that may have such attributes; a pass may create one later.

        Args:
            holders: The objects. Each may also have a `counted_once` of its own.
            names: Names of attributes of any of them. An attribute that is a module stands for all
                counters of the module and its submodules.
            shared: Parameters, modules and generators, which are never copied.
        """
        names = frozenset(names)
        self._shared = {id(each): each for each in shared}
        owners = [*holders.objects.values(), *holders.modules.values()]
        self._owners = [
            (owner, names.union(counted_by(owner)))
            for owner in owners
            if not _is_torchs(owner) or names & vars(owner).keys()  # torch's layers count nothing
        ]

    def now(self) -> Values:
        """Return the attributes' current values, not copied."""
        found: Values = {}
        for owner, names in self._owners:
            own, modules = vars(owner), vars(owner).get("_modules", {})
            for name in names:
                if name in own and not isinstance(own[name], nn.Module):
                    found[id(owner), name] = owner, own[name]
                elif name in own or name in modules:
                    found |= _within(own.get(name, modules.get(name)))
        return found

    def copied(self) -> Values:
        """Return copies of the attributes' current values."""
        return {
            (key, name): (owner, self._copied(owner, name, value))
            for (key, name), (owner, value) in self.now().items()
        }

    def put(self, values: Values) -> None:
        """Set the attributes to these values, and delete those that are not among them."""
        for place, (owner, _) in self.now().items():
            if place not in values:
                del owner.__dict__[place[1]]
        for (_, name), (owner, value) in values.items():
            owner.__dict__[name] = value

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Context manager that lets the block change copies, and puts the attributes back."""
        own = self.now()
        self.put(self.copied())
        try:
            yield
        finally:
            self.put(own)

    def _copied(self, owner: Any, name: str, value: Any) -> Any:
        try:
            return self._copy(value)
        except TypeError as error:  # as of locks, files
            if name in COUNTED_ONCE:  # something else that is called so
                return value
            raise ValueError(
                f"`counted_once` must name what can be copied, got `{name}` of "
                f"{type(owner).__name__} ({error}): name the counters in it, or leave it out."
            ) from error

    def _copy(self, value: Any) -> Any:
        if isinstance(value, Tensor) and not value.is_leaf:  # which deepcopy refuses
            return value.detach().clone()
        if type(value) in (list, tuple):
            return type(value)(map(self._copy, value))
        if isinstance(value, dict | deque):  # keeps a default factory, an order, a length
            copied = copy.copy(value)
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                copied[key] = self._copy(item)
            return copied
        return copy.deepcopy(value, dict(self._shared))


def counted_by(holder: object) -> Iterable[str]:
    """Return the names in the `counted_once` of an object or of its class."""
    own: Iterable[str] | None = vars(holder).get("counted_once")
    return getattr(type(holder), "counted_once", ()) if own is None else own


def _is_torchs(owner: object) -> bool:
    return type(owner).__module__.startswith("torch.nn.modules.")


def _within(module: nn.Module | None) -> Values:
    """Return the attributes of a module and its submodules that may be counters."""
    return {
        (id(each), name): (each, value)
        for each in ([] if module is None else module.modules())
        for name, value in attributes(each).items()
        if isinstance(value, STATE)
    }


@contextmanager
def unlogged(trainer: Any) -> Iterator[None]:
    """Context manager that drops what is logged by `trainer.log`, even if that was replaced."""
    own = vars(trainer)
    replaced = {"log": own["log"]} if "log" in own else {}
    own["log"] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del own["log"]
        own.update(replaced)
