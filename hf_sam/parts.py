"""A model's parts, which a step needs several times and which take long to find."""

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .distributed import wrapper_in
from .replay import Buffers


@dataclass(frozen=True)
class Parts:
    """A model's modules and parameters. Walking through it takes as long as a small pass."""

    params: dict[str, nn.Parameter]  # all, by the names they have in the bare model
    devices: set[torch.device]  # that parameters lie on
    ddp: DistributedDataParallel | None
    before_window: Buffers  # remembered for an exception
    between_passes: Buffers  # remembered for the perturbed passes
    trainable: dict[str, nn.Parameter] = field(default_factory=dict)  # by `at_this_step`

    @classmethod
    def of(cls, model: nn.Module, bare: nn.Module) -> Self:
        """Walk through a model.

        Args:
            model: As it is trained, wrapped and compiled.
            bare: The same without its wrappers.
        """
        params = {n.replace("_orig_mod.", ""): param for n, param in bare.named_parameters()}
        modules = list(model.modules())
        devices = {param.device for param in params.values()}
        return cls(params, devices, wrapper_in(modules), Buffers(modules), Buffers(modules))

    def at_this_step(self) -> Self:
        """Return them with what is trained now: parameters may be frozen and thawed."""
        trainable = {name: param for name, param in self.params.items() if param.requires_grad}
        return replace(self, trainable=trainable)


class Walk:
    """Remembers the parts of a model while it has the same modules and optimized parameters."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._modules: list[nn.Module] = []  # held, so that no other can take the place of one
        self._ids: list[int] = []
        self._parts: Parts | None = None

    def parts_of(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        accelerator: Accelerator,
    ) -> Parts:
        """Return the parts of a model, and look for them only if they may have changed.

        Args:
            model: The prepared model.
            optimizer: Of its parameters; without one they are looked for each time.
            accelerator: Takes off the model's wrappers.
        """
        groups = [] if optimizer is None else optimizer.param_groups
        optimized = [param for group in groups for param in group["params"]]
        if self._parts is None or not optimized or self._ids != self._ids_of(model, optimized):
            bare = accelerator.unwrap_model(model, keep_torch_compile=False)
            self._parts, self._modules = Parts.of(model, bare), list(model.modules())
            self._ids = self._ids_of(model, optimized)
        return self._parts.at_this_step()

    def _ids_of(self, model: nn.Module, optimized: list[Tensor]) -> list[int]:
        """Say what the parts depend on, more quickly than `model.modules()` finds them."""
        children = [id(child) for known in self._modules for child in known._modules.values()]
        return [id(model), *children, *map(id, optimized)]
