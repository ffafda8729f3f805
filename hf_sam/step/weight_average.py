"""A running average of the weights that a training goes through."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from transformers.utils import logging

from ..ascent.shards import local
from ..average_rule import Rule, rule_of
from ..backends import Engine
from .tensor_file import placed_as, read_tensors, write_tensors

logger = logging.get_logger(__name__)

AVERAGE_FILE = "weight_average.safetensors"
STATISTICS = ("running_mean", "running_var")


class WeightAverage:
    """The average of the weights that an optimizer trains and of a model's BatchNorm statistics.

    It is kept in float32 or better: an average in bfloat16 would stand still. Memory: one copy of
    what is averaged, and one of the weights while the average is in their place.
    """

    def __init__(
        self,
        rule: Rule,
        model: nn.Module,
        optimizer: Any,
        engine: Engine,
        max_steps: int,
        others: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """Begin before the first step.

        Args:
            rule: Which steps are averaged.
            model: The model, unwrapped.
            others: Modules outside the model, as of a loss, by name.
            optimizer: The base optimizer; what it does not hold does not change.
            engine: The engine that has prepared the model.
            max_steps: Optimizer steps of the run.
        """
        self.rule, self.count = rule, 0
        # optimizer steps before those that count; 0.29 * 100 is 28.999...
        self.begin = math.floor(round(rule.start * max_steps, 6))
        self.tensors: dict[str, Tensor] = {}  # the average, by name, in one order on all ranks
        self._joined: dict[str, int] = {}  # the count before each of them was trained
        self._model, self._optimizer, self._engine = model, optimizer, engine
        self._others = others or {}
        self._is_applied = False

    def require_weights(self) -> None:
        """Raise a ValueError if the optimizer holds no parameter of the model."""
        ids = {id(param) for param in self._engine.optimized(self._optimizer)}
        with self._engine.step():
            if not any(id(param) in ids for param in self._model.parameters()):
                raise ValueError(
                    "`weight_average` must find the model's parameters in the optimizer, got a "
                    f"{type(self._optimizer).__name__} without any: leave it out."
                )

    @torch.no_grad()
    def add(self) -> None:
        """Count the weights of now."""
        with self._engine.step():
            now = self._now()
            together: dict[Any, list[str]] = {}  # those that have been counted as often
            for name, x in now.items():
                known = self.tensors.get(name)
                if known is None or known.shape != x.shape:  # joins now, or is another one
                    self.tensors[name] = x.to(_wide(x), copy=True)
                    self._joined[name] = self.count
                elif x.dtype == _wide(x):
                    together.setdefault(self._joined[name], []).append(name)
                else:
                    together[name] = [name]  # one copy at a time
            for names in together.values():
                averages = [local(self.tensors[name]) for name in names]
                weights = [local(now[name]).to(_wide(now[name])) for name in names]
                self.rule.update(averages, weights, self.count - self._joined[names[0]])
            self.count += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager with the average in place of the weights, which it puts back bit for bit.

        Within itself, and before the first step that counts, it does nothing.
        """
        if self._is_applied or not self.count:
            yield
            return
        with torch.no_grad(), self._unmerged():
            saved = {name: local(x).clone() for name, x in self._now().items()}
        self._is_applied = True
        try:
            self.put_in_place()
            yield
        finally:
            self._is_applied = False
            self._put(saved)

    def put_in_place(self) -> None:
        """Overwrite the weights by their average."""
        self._put(self.tensors)

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the weights, and leave what a callback has begun to train or resized since."""
        with self._unmerged():
            for name, x in self._now().items():
                if name in tensors and local(tensors[name]).shape == local(x).shape:
                    local(x).copy_(local(tensors[name]))

    @contextmanager
    def _unmerged(self) -> Iterator[None]:
        """Context manager in which weights are as they are trained.

        A module that merges an adapter into its weights for evaluations takes it out of them again
        in training mode, by what the adapter is then.
        """
        was_training = self._model.training
        with self._engine.step():
            if not was_training:
                self._model.train()
            try:
                yield
            finally:
                if not was_training:
                    self._model.eval()

    def agree(self) -> None:
        """Have all ranks take the statistics of rank 0, which a checkpoint has; all must call."""
        if self._engine.broadcasts_buffers:
            for name in self.tensors:
                if name.endswith(STATISTICS):
                    dist.broadcast(self.tensors[name], 0)

    def save(self, folder: str, *, writes: bool) -> None:
        """Write the average to a checkpoint; all ranks must call."""
        joined = {name: count for name, count in self._joined.items() if count}
        facts = {"rule": self.rule.written, "begin": self.begin, "count": self.count}
        facts |= {"joined": joined} if joined else {}
        # in one entry: safetensors writes several in any order, and equal runs have equal files
        metadata = {"average": json.dumps(facts)}
        write_tensors(Path(folder, AVERAGE_FILE), self.tensors, metadata, writes=writes)

    def load(self, folder: str) -> None:
        """Read the average of a checkpoint; without one, or with one of other steps, begin anew.

        Raises:
            ValueError: If the file cannot be read.
        """
        path = Path(folder, AVERAGE_FILE)
        self.tensors, self._joined, self.count = {}, {}, 0
        if not path.is_file():
            logger.warning(f"There is no {path}: the average begins anew.")
            return
        remedy = "resume from another checkpoint, or remove the file, and the average begins anew."
        with self._engine.step():
            now = self._now()
            found, metadata = read_tensors(path, now, remedy=remedy)
            facts = json.loads(metadata["average"])
            if (rule_of(facts["rule"]), facts["begin"]) != (self.rule, self.begin):
                other = f"{facts['rule']} after {facts['begin']} steps"
                logger.warning(
                    f"{path} is of {other}, and not {self.rule.written} after {self.begin}: the "
                    "average begins anew."
                )
                return
            self.tensors = {
                n: placed_as(x, found[n], _wide(x)) for n, x in now.items() if n in found
            }
            self.count = facts["count"]
            self._joined = {name: facts.get("joined", {}).get(name, 0) for name in self.tensors}

    def _now(self) -> dict[str, Tensor]:
        """Return what is averaged as it is now, by name; of more than the model by its number."""
        optimized = {id(param): param for param in self._engine.optimized(self._optimizer)}
        found: dict[str, Tensor] = {}
        for name, param in self._model.named_parameters():
            if optimized.pop(id(param), None) is not None:
                found[name] = param
        found |= {f"optimizer.{i}": param for i, param in enumerate(optimized.values())}
        for prefix, module in [*self._model.named_modules(), *self._others.items()]:
            if isinstance(module, _NormBase) and module.running_mean is not None:
                for name in STATISTICS:
                    found[f"{prefix}.{name}"] = getattr(module, name)
        return {n.replace("_orig_mod.", "").lstrip("."): x.detach() for n, x in found.items()}


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
