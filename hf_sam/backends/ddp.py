"""One device, and DDP: every rank holds the whole model, and buckets of gradients are reduced."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Self

from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .engine import Engine, Weights
from .rules import REMEDY


class Replicated(Engine):
    """The engine of a model that every rank holds whole, in DDP's wrapper or in none."""

    def __init__(self, model: nn.Module) -> None:
        """Find DDP's wrapper, which torch.compile may have wrapped in turn."""
        self._model = model
        wrappers = (m for m in model.modules() if isinstance(m, DistributedDataParallel))
        self._ddp = next(wrappers, None)
        self.broadcasts_buffers = self._ddp is not None

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return the engine of any model that no other engine has changed."""
        return cls(model)

    def require_supported(
        self, params: Mapping[str, Tensor], *, scope: str | None, accumulation: int, ranks: int
    ) -> None:
        """Refuse a static graph where a pass is made without a reduction."""
        is_static = self._ddp is not None and self._ddp.static_graph
        if is_static and (scope != "global" or accumulation > 1):
            raise ValueError(
                "DDP's static graph must see every backward pass synchronised, got "
                f"`ascent_scope={scope or 'micro_batch'}` with {accumulation} micro-batches per "
                "optimizer step: set `ddp_static_graph=False`, use `ascent_scope=global` without "
                f"accumulation, or {REMEDY}."
            )

    def before_clean_pass(self, weights: Weights, *, reduced: bool) -> None:
        """Move gradients out of DDP's buckets, which a reduction overwrites; broadcast buffers.

        The broadcast is the one that DDP would make in the next forward pass, and does not make
        there any more: both passes begin from what it gives.
        """
        if reduced:
            for param in weights.values():
                if param.grad is not None:
                    param.grad = param.grad.clone()
        if self._ddp is not None and self._ddp.will_sync_module_buffers():
            self._ddp._sync_buffers()
            self.before_perturbed_passes()

    def before_perturbed_passes(self) -> None:
        """Keep DDP from broadcasting the buffers once more in the next forward pass.

        It does so after every reduced pass, so in global scope the perturbed pass would cost a
        broadcast that the plain Trainer does not make.
        """
        if self._ddp is not None:
            self._ddp.require_forward_param_sync = False

    def leaves(self, moved: list[Tensor], *, reduced: bool) -> list[Tensor] | None:
        """Leave nothing out where DDP waits for the gradient of every parameter."""
        return None if reduced and self._ddp is not None else moved

    def one_pass(self, accelerator: Accelerator, *, reduced: bool) -> AbstractContextManager[None]:
        """Keep the gradients of a pass on this rank, unless they are to be reduced."""
        return nullcontext() if reduced else accelerator.no_sync(self._model)
