"""What is refused under any engine, with rule and remedy."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.parallel import DataParallel

# accelerate's names of the backends in which every rank holds whole parameters, and of those that
# shard them: FSDP2 and DeepSpeed
SUPPORTED = frozenset(
    {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_HPU", "MULTI_MLU", "MULTI_MUSA", "MULTI_NPU"}
    | {"MULTI_SDAA", "MULTI_XPU", "FSDP2", "DEEPSPEED"}
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
        backend: accelerate's name of the backend; "FSDP2" for the second version of FSDP.
        devices: The number of devices that this one process drives.
        optimizer: transformers' name of the base optimizer, or that of its class in small letters.
        ranks_per_batch: The number of ranks that share the work on one batch, by the name of the
            parallelism that splits it.

    Raises:
        ValueError: Saying what cannot be had and what to use instead.
    """
    if backend == "FSDP":
        raise ValueError(
            "SAM must know the norm over all shards, got FSDP in its first version: set "
            f"`fsdp_version` to 2 (`accelerate launch --use_fsdp --fsdp_version 2`), or {REMEDY}."
        )
    if backend not in SUPPORTED:
        raise ValueError(
            f"SAM must hold the whole model on every rank or know its shards, got the backend "
            f"{backend}: use one device, DDP (`accelerate launch --multi_gpu`), FSDP2 "
            f"(`--use_fsdp --fsdp_version 2`) or DeepSpeed (`--use_deepspeed`), or {REMEDY}."
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
                f"SAM must see whole examples and whole layers on every rank, got {parallelism} "
                f"parallelism over {ranks} ranks: set its size to 1 in the parallelism config or "
                f"the distributed config, or {REMEDY}."
            )
    if optimizer.endswith(FUSED_OPTIMIZERS):
        raise ValueError(
            f"SAM must step after the perturbed pass, got the optimizer {optimizer}, which steps "
            f"inside every backward: use another, or {REMEDY}."
        )


def require_supported_model(model: nn.Module, params: Mapping[str, Tensor]) -> None:
    """Refuse, before the first step, a model that SAM would train wrongly under any engine.

    Args:
        model: As the backend has wrapped it.
        params: All that may be trained, by name.

    Raises:
        ValueError: Saying what cannot be had and what to use instead.
    """
    if isinstance(model, DataParallel):
        raise ValueError(
            "SAM must drive one device from each process, got a model in DataParallel: pass the "
            f"model itself and start with `accelerate launch --multi_gpu`, or {REMEDY}."
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise ValueError(
                f"SAM must find weights that only the optimizer changes, got `{name}` with "
                f"`max_norm`, which rescales its own in each pass: leave that out, or {REMEDY}."
            )
    for name, param in params.items():
        if param.is_complex() and param.requires_grad:
            raise ValueError(
                f"SAM must find real parameters, got `{name}` of {param.dtype}: keep its real and "
                f"imaginary parts (`torch.view_as_real`), or {REMEDY}."
            )


def require_one_perturbation(
    method: str, *, scope: str | None, accumulation: int, ranks: int
) -> None:
    """Refuse a scope of several perturbations for a method that needs the whole batch's gradient.

    Args:
        method: As the user calls it.
        scope: The `ascent_scope` that the user asked for, None for the default.
        accumulation: The number of micro-batches in a window.
        ranks: The number of processes.

    Raises:
        ValueError: Saying what cannot be had and what to use instead.
    """
    if perturbations(scope, accumulation, ranks) > 1:
        raise ValueError(
            f"`ascent_scope` must be global for {method}, which uses the gradient of the effective "
            f"batch, got {scope}: leave `ascent_scope` out."
        )


def perturbations(scope: str | None, accumulation: int, ranks: int) -> int:
    """Count the perturbations of one optimizer step; 0 where a default would make one."""
    return {"micro_batch": accumulation, "rank": 1, "global": 0, None: 0}[scope] * ranks
