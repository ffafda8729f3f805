"""A running average of the weights that a training goes through."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from transformers.utils import logging

from ..ascent.shards import local
from ..average_rule import Rule
from ..backends import Engine
from .tensor_file import placed_as, read_tensors, write_tensors

logger = logging.get_logger(__name__)

AVERAGE_FILE = "weight_average.safetensors"


class WeightAverage:
    """The average of a model's trained weights and of its BatchNorm statistics.

    It is kept in float32 or better: an average in bfloat16 would stand still. Memory: one copy of
    what is averaged, and one of the weights while the average is in their place.
    """

    def __init__(
        self, rule: Rule, model: nn.Module, optimized: list[Tensor], engine: Engine
    ) -> None:
        """Begin before the first step.

        Args:
            rule: Which steps are averaged.
            model: The model, unwrapped.
            optimized: The base optimizer's parameters; others of the model do not change.
            engine: The engine that has prepared the model.
        """
        self.rule, self.count = rule, 0
        self.tensors: dict[str, Tensor] = {}  # the average, by name
        self._model, self._engine = model, engine
        self._ids = {id(param) for param in optimized}
        self._is_applied = False

    @torch.no_grad()
    def add(self) -> None:
        """Count the weights of now."""
        with self._engine.step():
            now = self._now()
            for name, x in now.items():  # in one order on all ranks, which gather them
                if name not in self.tensors:
                    self.tensors[name] = x.to(_wide(x), copy=True)
            if self.count:
                averages = [local(self.tensors[name]) for name in now]
                self.rule.update(
                    averages, [local(x).to(_wide(x)) for x in now.values()], self.count
                )
            self.count += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager with the average in place of the weights, which it puts back bit for bit.

        Within itself, and before the first step that counts, it does nothing.
        """
        if self._is_applied or not self.count:
            yield
            return
        with torch.no_grad(), self._engine.step():
            saved = {name: local(x).clone() for name, x in self._now().items()}
        self._is_applied = True
        try:
            self.put_in_place()
            yield
        finally:
            self._is_applied = False
            with torch.no_grad(), self._engine.step():
                for name, x in self._now().items():
                    local(x).copy_(saved[name])

    @torch.no_grad()
    def put_in_place(self) -> None:
        """Overwrite the weights by their average, if there is one."""
        with self._engine.step():
            for name, x in self._now().items():
                if name in self.tensors:
                    local(x).copy_(local(self.tensors[name]))

    def save(self, folder: str, *, writes: bool) -> None:
        """Write the average to a checkpoint; all ranks must call."""
        metadata = {"rule": self.rule.written, "count": str(self.count)}
        write_tensors(Path(folder, AVERAGE_FILE), self.tensors, metadata, writes=writes)

    def load(self, folder: str) -> None:
        """Read the average of a checkpoint; without one, begin anew.

        Raises:
            ValueError: If the file cannot be read.
        """
        path = Path(folder, AVERAGE_FILE)
        self.tensors, self.count = {}, 0
        if not path.is_file():
            return
        remedy = "resume from another checkpoint, or remove the file, and the average begins anew."
        with self._engine.step():
            now = self._now()
            found, metadata = read_tensors(path, now, remedy=remedy)
            if metadata.get("rule") != self.rule.written or found.keys() != now.keys():
                of = metadata.get("rule")
                logger.warning(f"{path} is of {of}, or of another model: the average begins anew.")
                return
            self.tensors = {n: placed_as(now[n], x, _wide(now[n])) for n, x in found.items()}
            self.count = int(metadata["count"])

    def _now(self) -> dict[str, Tensor]:
        """Return what is averaged as it is now, by name."""
        named = self._model.named_parameters()
        found = {name: param.detach() for name, param in named if id(param) in self._ids}
        for prefix, module in self._model.named_modules():
            if isinstance(module, _NormBase) and module.running_mean is not None:
                for name in ("running_mean", "running_var"):
                    found[f"{prefix}.{name}"] = getattr(module, name)
        return {name.replace("_orig_mod.", ""): x for name, x in found.items()}


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
