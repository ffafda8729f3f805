"""What each backend allows SAM's two passes to do."""

from collections.abc import Iterable

from torch import Tensor
from torch.distributed.tensor import DTensor

# accelerate's names of the backends in which every rank holds the whole model
REPLICATED = frozenset(
    {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_HPU", "MULTI_MLU", "MULTI_MUSA", "MULTI_NPU"}
    | {"MULTI_SDAA", "MULTI_XPU"}
)
# transformers' names of the optimizers that step inside backward (or end so): a clean pass would
# train already
FUSED_OPTIMIZERS = ("lomo", "layerwise")


def require_supported(
    distributed_type: str, *, devices: int, optimizer: str, params: Iterable[Tensor]
) -> None:
    """Refuse, when training starts, what this release would compute wrongly.

    Args:
        distributed_type: accelerate's name of the backend.
        devices: The number of devices that this one process drives.
        optimizer: transformers' name of the base optimizer.
        params: The parameters of the prepared model.

    Raises:
        ValueError: Saying what cannot be had and what to use instead.
    """
    remedy = "set `rho=0` for the plain Trainer"
    if distributed_type not in REPLICATED:
        raise ValueError(
            f"SAM must hold the whole model on every rank, got the backend {distributed_type}: "
            f"use one device or DDP (`accelerate launch --multi_gpu`), or {remedy}."
        )
    if devices > 1:
        raise ValueError(
            f"SAM must drive one device from each process, got {devices} under DataParallel: "
            f"start with `accelerate launch --num_processes {devices}`, set "
            f"CUDA_VISIBLE_DEVICES to one device, or {remedy}."
        )
    if optimizer.endswith(FUSED_OPTIMIZERS):
        raise ValueError(
            f"SAM must step after the perturbed pass, got `optim={optimizer}`, which steps inside "
            f"every backward: use another `optim`, or {remedy}."
        )
    if any(isinstance(param, DTensor) for param in params):
        raise ValueError(
            "SAM must hold whole parameters on every rank, got sharded ones (DTensor): "
            f"load the model without sharding, or {remedy}."
        )
