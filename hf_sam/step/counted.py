"""What a pass counts beside its gradient: attributes that `counted_once` names, and log entries."""

import copy
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from .holders import Holders, attributes

# By holder's id and attribute's name: the holder, and what it has there.
Values = dict[tuple[int, str], tuple[Any, Any]]
STATE = (bool, int, float, complex, str, Tensor, np.ndarray, list, tuple, dict, set)


class Counted:
    """Attributes that count one of two passes, on the trainer, on loss functions and on modules."""

    def __init__(self, holders: Holders, names: Iterable[str], shared: Iterable[object]) -> None:
        """Say where to look; a pass may make an attribute later.

        Args:
            holders: Those of the attributes. Each may have a `counted_once` too.
            names: Of attributes, whoever has them. One that is a module stands for all that the
                module and those within it count.
            shared: Parameters, modules and generators, which are never copied.
        """
        names = frozenset(names)
        self._shared = {id(each): each for each in shared}
        owners = [*holders.objects.values(), *holders.modules.values()]
        self._owners = [
            (owner, names.union(counted_by(owner)))
            for owner in owners
            if not _is_torchs(owner) or names & vars(owner).keys()  # a layer counts nothing itself
        ]

    def now(self) -> Values:
        """Return what the attributes are now, themselves and no copies."""
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
        """Return copies of what the attributes are now."""
        return {place: (owner, self._copy(x)) for place, (owner, x) in self.now().items()}

    def put(self, values: Values) -> None:
        """Bind the attributes to these values, and unbind those that had none."""
        for place, (owner, _) in self.now().items():
            if place not in values:
                del owner.__dict__[place[1]]
        for (_, name), (owner, value) in values.items():
            owner.__dict__[name] = value

    def _copy(self, value: Any) -> Any:
        if isinstance(value, Tensor) and not value.is_leaf:  # which deepcopy refuses
            return value.detach().clone()
        if type(value) in (list, tuple):
            return type(value)(map(self._copy, value))
        if isinstance(value, dict | deque):  # of its kind: a default, an order, a length
            copied = copy.copy(value)
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                copied[key] = self._copy(item)
            return copied
        return copy.deepcopy(value, dict(self._shared))


def counted_by(holder: object) -> Iterable[str]:
    """Return the names in the `counted_once` that an object or its class has."""
    own: Iterable[str] | None = vars(holder).get("counted_once")
    return getattr(type(holder), "counted_once", ()) if own is None else own


def _is_torchs(owner: object) -> bool:
    return type(owner).__module__.startswith("torch.nn.modules.")


def _within(module: nn.Module | None) -> Values:
    """Return the attributes of a module, and of those within it, that may count something."""
    return {
        (id(each), name): (each, value)
        for each in ([] if module is None else module.modules())
        for name, value in attributes(each).items()
        if isinstance(value, STATE)
    }


@contextmanager
def unlogged(trainer: Any) -> Iterator[None]:
    """Drop what the block logs by `trainer.log`, also where a subclass or the user replaced it."""
    own = vars(trainer)
    replaced = {"log": own["log"]} if "log" in own else {}
    own["log"] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del own["log"]
        own.update(replaced)
