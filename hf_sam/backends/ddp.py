"""One device, and DDP: every rank holds the whole model, and buckets of gradients are reduced."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .backward import Backward, backward_by, graph_of, leaf_of
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
        self._used: dict[int, Tensor] = {}  # by id: those of passes since the last reduction

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
        if self._ddp is None or not self._ddp.find_unused_parameters:
            return nullcontext() if reduced else accelerator.no_sync(self._model)
        return self._reduced(accelerator) if reduced else self._kept_here(accelerator)

    @contextmanager
    def _kept_here(self, accelerator: Accelerator) -> Iterator[None]:
        """Context manager of a pass without a reduction, of which DDP notes what it has used."""
        assert self._ddp is not None
        with accelerator.no_sync(self._model):
            yield
        params = self._ddp.module.parameters()
        self._used |= {id(param): param for param in params if param.grad is not None}

    @contextmanager
    def _reduced(self, accelerator: Accelerator) -> Iterator[None]:
        """Context manager of a pass with a reduction, which has a gradient of all that was used.

        DDP refuses to reduce none where a pass before, that of w, had one: a layer that dropped
        out, an expert that was not chosen at w + epsilon.
        """

        def call(whole: Backward, loss: Tensor, kwargs: Mapping[str, Any]) -> None:
            missing = {key: param for key, param in self._used.items() if param.grad is None}
            for leaf in map(leaf_of, graph_of(loss)) if missing else ():
                missing.pop(id(leaf), None)
            for param in missing.values():
                param.grad = torch.zeros_like(param)
            whole(loss, **kwargs)

        with backward_by(accelerator, call):
            yield
        self._used = {}
