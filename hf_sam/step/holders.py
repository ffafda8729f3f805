"""Objects with state that a training step may change: modules, loss functions, the trainer."""

import dis
import functools
import sys
import threading
import types
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch import Tensor, nn

from .replay import Generator, is_generator

# Objects from these packages have no state that a pass changes, or it is handled elsewhere.
LIBRARIES = sys.stdlib_module_names | {"torch", "transformers", "accelerate", "datasets", "numpy"}
LIBRARIES |= {__name__.partition(".")[0], "deepspeed", "pydantic"}
# Attributes of a Trainer that no pass changes.
NOT_IN_A_PASS = frozenset(
    {"train_dataset", "eval_dataset", "data_collator", "callback_handler", "_last_inputs"}
)
# Modules from these packages count their own passes.
WRAPPERS = ("torch.nn.parallel.", "torch.distributed.", "torch._dynamo.", "deepspeed.")
DEPTH = 6  # levels of nested containers and objects that are searched
MOST = 64  # entries of a container that are searched, whatever they are
MANY = 10_000  # entries of which modules, tensors and generators are searched
OWN_OF_MODULES = frozenset(vars(nn.Module()))
SEQUENCES = (list, tuple, deque, set, frozenset)
PARTIAL = (functools.partial, functools.partialmethod)
WRAPPING = (staticmethod, classmethod, type(functools.cache(len)))
CALLABLES = (types.MethodType, types.FunctionType, *PARTIAL, *WRAPPING)
CONTAINERS = (Mapping, *SEQUENCES, *CALLABLES)
# Of the standard library, and yet with attributes that are the user's.
BAGS = (types.SimpleNamespace, threading.local)
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@dataclass
class Holders:
    """Everything that may have state, found by searching a model and its trainer."""

    modules: dict[str, nn.Module] = field(default_factory=dict)  # by name, all of them
    objects: dict[str, object] = field(default_factory=dict)  # by name: the trainer, loss functions
    generators: list[Generator] = field(default_factory=list)
    names: dict[Tensor, str] = field(default_factory=dict)  # of parameters

    @classmethod
    def of(cls, model: nn.Module, trainer: object) -> "Holders":
        """Search a model and all that a trainer holds: in attributes, classes and closures.

        Args:
            model: The model, unwrapped. The names of its modules get no prefix.
            trainer: The name of an attribute is the prefix of the names of what it holds.
        """
        found = cls()
        seen = {id(trainer)}  # which hooks and closures may hold
        for name, value in [("", model), *attributes(trainer).items()]:
            if name not in NOT_IN_A_PASS:
                found._visit(name, value, seen, depth=DEPTH)
        found.objects["trainer"] = trainer
        found._visit_class("", type(trainer), seen, DEPTH)
        return found

    def attributes(self) -> Iterator[tuple[str, object, dict[str, Any]]]:
        """Yield name, object and plain attributes (no modules, parameters or buffers) of each."""
        for name, holder in [*self.objects.items(), *self.modules.items()]:
            own = attributes(holder)
            is_trainer = name == "trainer"
            yield name, holder, _without(own, NOT_IN_A_PASS) if is_trainer else own

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
            named = [(n, m) for n, m in value.named_modules(prefix=name) if id(m) not in seen]
            seen.update(id(module) for _, module in named)
            for below, module in named:  # before what hooks hold, which has longer names
                self.modules[_free(below, self.modules)] = module
                self._visit_all(below, module._parameters, seen, depth)
            for below, module in named:
                self._visit_all(below, attributes(module) | _hooks_of(module), seen, depth)
                self._visit_class(below, type(module), seen, depth)
        else:
            inner = _inner(value)
            if inner:
                seen.add(id(value))
            if inner and not isinstance(value, CONTAINERS) and hasattr(value, "__dict__"):
                self.objects[_free(name, self.objects)] = value
                self._visit_class(name, type(value), seen, depth)
            self._visit_all(name, inner, seen, depth)

    def _visit_class(self, name: str, kind: type, seen: set[int], depth: int) -> None:
        """Search class variables and the closures of methods, in the user's own classes.

        Of a library's classes, the functions that the user has put there.
        """
        for base in kind.__mro__:
            if id(base) not in seen:
                seen.add(id(base))
                own = dict(vars(base)) if _is_users(base) else _users_functions_of(base)
                self._visit_all(name, own, seen, depth)

    def _visit_all(self, name: str, inner: Mapping[str, Any], seen: set[int], depth: int) -> None:
        for below, value in inner.items():
            self._visit(f"{name}.{below}" if name else below, value, seen, depth=depth - 1)


def attributes(holder: object) -> dict[str, Any]:
    """Return an object's own attributes; for a module, without those of `nn.Module`."""
    own = getattr(holder, "__dict__", {})
    if not isinstance(holder, nn.Module):
        return dict(own) | _slots_of(holder)
    if type(holder).__module__.startswith(WRAPPERS):
        return {}
    # torch's older spectral norm and pruning compute `weight` from `weight_orig` in each pass
    names = holder._parameters.keys()  # TorchScript's mapping cannot be iterated over
    made = {name.removesuffix("_orig") for name in names if name.endswith("_orig")}
    return _without(own, OWN_OF_MODULES | made)


def entries(value: Mapping[Any, Any], most: int | None = None) -> list[tuple[Any, Any]]:
    """Return the entries of a mapping; none of one that refuses some, as a configuration may."""
    try:
        return list(islice(value.items(), most))
    except Exception:  # a user's mapping may compute its values, or be closed
        return []


def _free(name: str, taken: Container[str]) -> str:
    """Return a name that is not taken: the trainer and the model may use one for two things."""
    return _free(f"{name}'", taken) if name in taken else name


def _without(own: dict[str, Any], names: Set[str]) -> dict[str, Any]:
    return {name: value for name, value in own.items() if name not in names}


def _inner(value: Any) -> dict[str, Any]:
    """Return the contents of a container, a callable or an object of a user's class, by name."""
    if isinstance(value, CALLABLES):
        return _of_callable(value)
    is_searched = _is_users(type(value)) or isinstance(value, BAGS)
    own = attributes(value) if is_searched and not isinstance(value, type) else {}
    if isinstance(value, Mapping):
        most = MANY if isinstance(value, dict) else MOST  # another one may compute its values
        return {str(key): item for key, item in _searched(entries(value, most))} | own
    if isinstance(value, SEQUENCES):
        return {str(index): item for index, item in _searched(enumerate(islice(value, MANY)))} | own
    return own


def _searched(some: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Yield the first entries, and of the others the modules, tensors and generators."""
    for i, (key, item) in enumerate(some):
        if i < MOST or isinstance(item, (nn.Module, Tensor)) or is_generator(item):  # noqa: UP038
            yield key, item


def _of_callable(value: Any) -> dict[str, Any]:
    """Return what a function, or something around one, refers to, by name."""
    if isinstance(value, PARTIAL):
        return {"func": value.func, **_inner(value.args), **value.keywords}
    if isinstance(value, types.MethodType):
        return {"self": value.__self__, "func": value.__func__}
    if isinstance(value, WRAPPING):
        return {"func": value.__wrapped__}
    cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    closed_over = {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
    closed_over |= _globals_with_state(value)
    return closed_over | _inner(value.__defaults__ or ()) | (value.__kwdefaults__ or {})


def _users_functions_of(kind: type) -> dict[str, Any]:
    functions = {n: f for n, f in vars(kind).items() if isinstance(f, types.FunctionType)}
    return {name: function for name, function in functions.items() if _is_users(function)}


def _slots_of(holder: object) -> dict[str, Any]:
    """Return the attributes that an object keeps in slots."""
    slots = [vars(kind).get("__slots__", ()) for kind in type(holder).__mro__]
    names = [n for of in slots for n in ([of] if isinstance(of, str) else of)]
    own = (name for name in names if not name.startswith("__") and hasattr(holder, name))
    return {name: getattr(holder, name) for name in own}


def _hooks_of(module: nn.Module) -> dict[str, Any]:
    """Return the functions that a module's passes call beside its `forward`."""
    return {name: list(getattr(module, name, {}).values()) for name in HOOKS}


def _globals_with_state(function: types.FunctionType) -> dict[str, Any]:
    """Return the modules and generators that a function names and its file holds (notebooks)."""
    names = _names_in(function.__code__) & function.__globals__.keys()
    found = {name: function.__globals__[name] for name in names}
    return {n: x for n, x in found.items() if isinstance(x, nn.Module) or is_generator(x)}


def _names_in(code: types.CodeType) -> set[str]:
    """Return the names of the global variables that code reads."""
    inner = (each for each in code.co_consts if isinstance(each, types.CodeType))
    loaded = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return loaded.union(*map(_names_in, inner))


def _is_users(kind: type | types.FunctionType) -> bool:
    return str(kind.__module__).partition(".")[0] not in LIBRARIES


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
