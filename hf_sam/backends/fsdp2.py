"""FSDP2: parameters are DTensors, each rank holds its shards and gathers the weights for a pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.utils import logging

from .engine import Engine
from .rules import REMEDY, perturbations

logger = logging.get_logger(__name__)


class Sharded(Engine):
    """The engine of a model with sharded parameters: by FSDP2, or while it was loaded."""

    default_scope = "global"  # no rank holds a gradient of its own

    def __init__(self, model: nn.Module) -> None:
        """Find the modules that gather their weights; each is nn.Module and FSDPModule."""
        self._model = model
        self._modules: list[Any] = [m for m in model.modules() if isinstance(m, FSDPModule)]

    @classmethod
    def of(cls, model: nn.Module) -> Self | None:
        """Return the engine of a model with shards, which may be gathered just now."""
        engine = cls(model)
        has_shards = any(isinstance(param, DTensor) for param in model.parameters())
        return engine if engine._modules or has_shards else None

    def require_supported(
        self, params: Mapping[str, Tensor], *, scope: str | None, accumulation: int, ranks: int
    ) -> None:
        """Refuse shards that are not FSDP2's, and a scope that needs a rank's own gradient."""
        self._use_shards()
        managed = {id(param) for module in self._modules for param in module.parameters()}
        for name, param in self._model.named_parameters():
            is_sharded = isinstance(param, DTensor)
            if id(param) not in managed or (param.requires_grad and not is_sharded):
                raise ValueError(
                    f"SAM must find every trainable parameter sharded by FSDP2 alone, got `{name}` "
                    "beside it (tensor parallelism, or an adapter added to a sharded model): shard "
                    f"the whole model by FSDP2, or {REMEDY}."
                )
        groups = [group for module in self._modules for group in _groups(module)]
        if not all(group.reshard_after_backward for group in groups):
            raise ValueError(
                "FSDP2 must gather the perturbed weights anew, got a module with "
                "`set_reshard_after_backward(False)`, which would keep the unperturbed ones: leave "
                f"that call out, or {REMEDY}."
            )
        if perturbations(scope, accumulation, ranks) > 1:
            raise ValueError(
                f"`ascent_scope` must be global for sharded parameters, got {scope}: no rank holds "
                "a gradient of its own. Leave `ascent_scope` out, or load the model without "
                "sharding."
            )
        logger.info("The parameters are sharded: `ascent_scope` is global.")

    @contextmanager
    def step(self) -> Iterator[None]:
        """Use shards in the block, and free on leaving what FSDP2 gathered of the weights in it.

        After an exception in a perturbed pass the shards are w again, but gathered copies of w +
        epsilon would serve the next forward pass. (Where a module keeps its weights gathered after
        a forward pass, it has to be told not to, or it would not let go of them in mid-forward.)
        """
        self._use_shards()
        try:
            yield
        except BaseException:
            for module in self._modules:
                module.set_reshard_after_forward(True, recurse=False)
            raise
        finally:
            for module in self._modules:
                module.reshard()

    def leaves(self, moved: list[Tensor], *, reduced: bool) -> list[Tensor] | None:
        """Return the gathered parameters, which a pass computes with in place of the shards."""
        ids = set(map(id, moved))
        groups = [group for module in self._modules for group in _groups(module)]
        held = [param for group in groups for param in group.fsdp_params]
        wanted = [param for param in held if id(param.sharded_param) in ids]
        gathered = [getattr(param, "_unsharded_param", None) for param in wanted]
        return [param for param in gathered if param is not None]  # the others are not used

    def _use_shards(self) -> None:
        """Have FSDP2 show its shards, and reduce the gradients of each pass into them.

        An evaluation leaves weights gathered, which would be perturbed in place of the shards. And
        the Trainer defers the reduction to the last micro-batch: a clean gradient would wait
        unsharded, invisible in `p.grad`, and join the perturbed one.
        """
        for module in self._modules:
            module.reshard()
            module.set_requires_gradient_sync(True, recurse=False)
            module.set_requires_all_reduce(True, recurse=False)


def _groups(module: Any) -> list[Any]:
    """The parameter groups of a module; torch has no public way to read their settings."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # torch 2.11 has at most one
        groups = [state._fsdp_param_group]
    return [group for group in groups if group is not None]
