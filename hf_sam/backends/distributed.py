"""What each backend allows SAM's two passes to do, and what it needs between them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel

# accelerate's names of the backends in which every rank holds whole parameters, and FSDP2, which
# shards them as DTensors
SUPPORTED = frozenset(
    {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_HPU", "MULTI_MLU", "MULTI_MUSA", "MULTI_NPU"}
    | {"MULTI_SDAA", "MULTI_XPU", "FSDP2"}
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
            f"SAM must hold the whole model on every rank or its FSDP2 shards, got the backend "
            f"{backend}: use one device, DDP (`accelerate launch --multi_gpu`) or FSDP2 "
            f"(`--use_fsdp --fsdp_version 2`), or {REMEDY}."
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


def require_supported_model(
    model: nn.Module,
    params: Mapping[str, Tensor],
    *,
    scope: str | None,
    accumulation: int,
    ranks: int,
) -> None:
    """Refuse, before the first step, a prepared model that SAM would train wrongly.

    Args:
        model: The model as the backend has wrapped it.
        params: All that may be trained, by name.
        scope: The `ascent_scope` that the user asked for, None for the default.
        accumulation: The number of micro-batches in a window.
        ranks: The number of processes.

    Raises:
        ValueError: Saying what cannot be had and what to use instead.
    """
    if isinstance(model, DataParallel):
        raise ValueError(
            "SAM must drive one device from each process, got a model in DataParallel: pass the "
            f"model itself and start with `accelerate launch --multi_gpu`, or {REMEDY}."
        )
    for name, param in params.items():
        if param.is_complex() and param.requires_grad:
            raise ValueError(
                f"SAM must find real parameters, got `{name}` of {param.dtype}: keep its real and "
                f"imaginary parts (`torch.view_as_real`), or {REMEDY}."
            )
    if is_sharded(model):
        _require_supported_shards(model)
        if _perturbations(scope, accumulation, ranks) > 1:
            raise ValueError(
                f"`ascent_scope` must be global for sharded parameters, got {scope}: no rank holds "
                "a gradient of its own. Leave `ascent_scope` out, or load the model without "
                "sharding."
            )
    ddp = wrapper_in(model.modules())
    if ddp is not None and ddp.static_graph and (scope != "global" or accumulation > 1):
        raise ValueError(
            "DDP's static graph must see every backward pass synchronised, got "
            f"`ascent_scope={scope or 'micro_batch'}` with {accumulation} micro-batches per "
            "optimizer step: set `ddp_static_graph=False`, use `ascent_scope=global` without "
            f"accumulation, or {REMEDY}."
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
    if _perturbations(scope, accumulation, ranks) > 1:
        raise ValueError(
            f"`ascent_scope` must be global for {method}, which uses the gradient of the effective "
            f"batch, got {scope}: leave `ascent_scope` out."
        )


def is_sharded(model: nn.Module) -> bool:
    """Say whether a parameter is sharded: by FSDP2, or while the model was loaded."""
    sharded = any(isinstance(param, DTensor) for param in model.parameters())
    return sharded or bool(_fsdp_modules(model))  # which may hold gathered weights just now


def use_shards(model: nn.Module) -> None:
    """Have FSDP2 show its shards, and reduce the gradients of each pass into them.

    An evaluation leaves weights gathered, which would be perturbed in place of the shards. And the
    Trainer defers the reduction to the last micro-batch: a clean gradient would wait unsharded,
    invisible in `p.grad`, and join the perturbed one.
    """
    for module in _fsdp_modules(model):
        module.reshard()
        module.set_requires_gradient_sync(True, recurse=False)
        module.set_requires_all_reduce(True, recurse=False)


@contextmanager
def on_shards(model: nn.Module) -> Iterator[None]:
    """Use shards in the block, and free on leaving what FSDP2 gathered of the weights in it.

    After an exception in a perturbed pass the shards are w again, but gathered copies of w +
    epsilon would serve the next forward pass. (Where a module keeps its weights gathered after a
    forward pass, it has to be told not to, or it would not let go of them in mid-forward.)

    Args:
        model: The prepared model.

    Yields:
        Nothing.
    """
    use_shards(model)
    try:
        yield
    except BaseException:
        for module in _fsdp_modules(model):
            module.set_reshard_after_forward(True, recurse=False)
        raise
    finally:
        for module in _fsdp_modules(model):
            module.reshard()


def before_clean_pass(
    ddp: DistributedDataParallel | None, params: Iterable[Tensor], *, reduced: bool
) -> None:
    """Have both passes begin from the buffers that DDP broadcasts, and keep gradients apart.

    Args:
        ddp: The wrapper; None without one.
        params: The trainable ones.
        reduced: Whether the pass reduces its gradients.
    """
    if reduced:
        leave_buckets(params)
    broadcast_buffers(ddp)


def leave_buckets(params: Iterable[Tensor]) -> None:
    """Move gradients out of DDP's buckets, which the next reduction overwrites."""
    for param in params:
        if param.grad is not None:
            param.grad = param.grad.clone()


def leave_buffers_alone(ddp: DistributedDataParallel | None) -> None:
    """Keep DDP from broadcasting the buffers once more in the next forward pass.

    It does so after every synchronised pass, so in global scope the perturbed pass would cost a
    broadcast that the plain Trainer does not make.

    Args:
        ddp: The wrapper; None without one.
    """
    if ddp is not None:
        ddp.require_forward_param_sync = False


def broadcast_buffers(ddp: DistributedDataParallel | None) -> None:
    """Broadcast the buffers now, if DDP would in the next forward pass, and not in that one again.

    What the passes begin from is remembered after it.

    Args:
        ddp: The wrapper; None without one.
    """
    if ddp is not None and ddp.will_sync_module_buffers():
        ddp._sync_buffers()
        leave_buffers_alone(ddp)


def wrapper_in(modules: Iterable[nn.Module]) -> DistributedDataParallel | None:
    """Find DDP's wrapper, which torch.compile may have wrapped in turn."""
    wrappers = (m for m in modules if isinstance(m, DistributedDataParallel))
    return next(wrappers, None)


def _fsdp_modules(model: nn.Module) -> list[Any]:  # both nn.Module and FSDPModule
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _require_supported_shards(model: nn.Module) -> None:
    use_shards(model)
    modules = _fsdp_modules(model)
    managed = {id(param) for module in modules for param in module.parameters()}
    for name, param in model.named_parameters():
        if id(param) not in managed or (param.requires_grad and not isinstance(param, DTensor)):
            raise ValueError(
                f"SAM must find every trainable parameter sharded by FSDP2 alone, got `{name}` "
                "beside it (tensor parallelism, or an adapter added to a sharded model): shard the "
                f"whole model by FSDP2, or {REMEDY}."
            )
    if not all(group.reshard_after_backward for module in modules for group in _groups(module)):
        raise ValueError(
            "FSDP2 must gather the perturbed weights anew, got a module with "
            "`set_reshard_after_backward(False)`, which would keep the unperturbed ones: leave "
            f"that call out, or {REMEDY}."
        )


def _groups(module: Any) -> list[Any]:
    """The parameter groups of a module; torch has no public way to read their settings."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # torch 2.11 has at most one
        groups = [state._fsdp_param_group]
    return [group for group in groups if group is not None]


def _perturbations(scope: str | None, accumulation: int, ranks: int) -> int:
    """Count the perturbations of one optimizer step; 0 where a default would make one."""
    return {"micro_batch": accumulation, "rank": 1, "global": 0, None: 0}[scope] * ranks
