"""What each backend allows SAM's two passes to do, and what it needs between them."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

# accelerate's names of the backends in which every rank holds the whole model
REPLICATED = frozenset(
    {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_HPU", "MULTI_MLU", "MULTI_MUSA", "MULTI_NPU"}
    | {"MULTI_SDAA", "MULTI_XPU"}
)
# transformers' names of the optimizers that step inside backward (or end so): a clean pass would
# train already
FUSED_OPTIMIZERS = ("lomo", "layerwise")
REMEDY = "set `rho=0` for the plain Trainer"


def require_supported_backend(
    backend: str, *, devices: int, optimizer: str, ranks_per_batch: Mapping[str, int]
) -> None:
    """Refuse, before the model is prepared, a backend under which SAM would be wrong.

    Args:
        backend: accelerate's name of the backend.
        devices: The number of devices that this one process drives.
        optimizer: transformers' name of the base optimizer.
        ranks_per_batch: The number of ranks that share the work on one batch, by the name of the
            parallelism that splits it.

    Raises:
        ValueError: Saying what cannot be had and what to use instead.
    """
    if backend not in REPLICATED:
        raise ValueError(
            f"SAM must hold the whole model on every rank, got the backend {backend}: "
            f"use one device or DDP (`accelerate launch --multi_gpu`), or {REMEDY}."
        )
    if devices > 1:
        raise ValueError(
            f"SAM must drive one device from each process, got {devices} under DataParallel: "
            f"start with `accelerate launch --num_processes {devices}`, set "
            f"CUDA_VISIBLE_DEVICES to one device, or {REMEDY}."
        )
    for parallelism, ranks in ranks_per_batch.items():
        if ranks > 1:
            raise ValueError(
                f"SAM must see whole examples on every rank, got {parallelism} parallelism over "
                f"{ranks} ranks, which splits the inputs in place: set its size to 1 in the "
                f"parallelism config, or {REMEDY}."
            )
    if optimizer.endswith(FUSED_OPTIMIZERS):
        raise ValueError(
            f"SAM must step after the perturbed pass, got `optim={optimizer}`, which steps inside "
            f"every backward: use another `optim`, or {REMEDY}."
        )


def require_supported_model(model: nn.Module, *, scope: str, accumulation: int) -> None:
    """Refuse, before the first step, a prepared model that SAM would train wrongly.

    Args:
        model: The model as the backend has wrapped it.
        scope: What shares one perturbation: micro_batch, rank or global.
        accumulation: The number of micro-batches in a window.

    Raises:
        ValueError: Saying what cannot be had and what to use instead.
    """
    if any(isinstance(param, DTensor) for param in model.parameters()):
        raise ValueError(
            "SAM must hold whole parameters on every rank, got sharded ones (DTensor): "
            f"load the model without sharding, or {REMEDY}."
        )
    ddp = _ddp(model)
    if ddp is not None and ddp.static_graph and (scope != "global" or accumulation > 1):
        raise ValueError(
            "DDP's static graph must see every backward pass synchronised, got "
            f"`ascent_scope={scope}` with {accumulation} micro-batches per optimizer step: set "
            "`ddp_static_graph=False`, or use `ascent_scope=global` without accumulation."
        )


def leave_buckets(params: Iterable[Tensor]) -> None:
    """Move gradients out of DDP's buckets, which the next reduction overwrites."""
    for param in params:
        if param.grad is not None:
            param.grad = param.grad.clone()


def leave_buffers_alone(model: nn.Module) -> None:
    """Keep DDP from broadcasting the buffers once more in the next forward pass.

    It does so after every synchronised pass, so in global scope the perturbed pass would cost a
    broadcast that the plain Trainer does not make.
    """
    ddp = _ddp(model)
    if ddp is not None:
        ddp.require_forward_param_sync = False


def _ddp(model: nn.Module) -> DistributedDataParallel | None:
    """Find the wrapper, which torch.compile may have wrapped in turn."""
    wrappers = (m for m in model.modules() if isinstance(m, DistributedDataParallel))
    return next(wrappers, None)
