"""A context in which a model is measured deterministically, and afterwards exactly restored."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Generator, Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from ..step.buffers import Buffers
from ..step.counted import COUNTED_ONCE, Counted, counted_by, unlogged
from ..step.holders import Holders
from ..step.replay import Generator as OwnGenerator
from ..step.replay import random_state, seeded, set_random_state
from .batches import collect
from .loss import LossFunction, TrainerLoss, model_loss
from .objective import Objective


@contextmanager
def measuring(
    model: nn.Module,
    batches: Iterable[Any],
    loss: LossFunction = model_loss,
    *,
    max_batches: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Iterator[Objective]:
    """Context manager that yields the loss as a function of the weights, and restores everything.

    The model's parameters are never written to: losses at other weights are computed with copies
    in their place. While the block runs, the model and what the loss holds are in eval mode (no
    dropout, BatchNorm with its running statistics), attention uses the kernel that has second
    derivatives, and nothing is compiled, or logged by a Trainer whose loss it is. Random draws of
    the forward pass, if there are any, are the same at all weights.

    Args:
        model: Any module; wrappers of parallel training and of `torch.compile` are removed.
        batches: A data loader with batches of any size, which are kept in memory on the host. Each
            is one micro-batch: the memory needed is that of the largest.
        loss: The mean loss of a batch. It must use the parameters of the model that it is given, as
            only those are replaced.
        max_batches: Use the first so many batches; None for all.
        seed: Seed of the loader's order, if it shuffles, and of all random draws.
        dtype: To compute in; None for the weights' own, but at least float32.

    Yields:
        The objective. Memory: one copy of the parameters.

    Raises:
        ValueError: If there is nothing to measure, or the loss is not finite.
    """
    if seed < 0:
        raise ValueError(f"`seed` must be >= 0, got {seed}.")
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    device = _device_of(trainable)
    owner = loss.trainer if isinstance(loss, TrainerLoss) else SimpleNamespace(loss=loss)
    holders = Holders.of(model, owner)
    modules, generators = holders.modules.values(), holders.generators
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        _own_forward(model),
        Buffers(modules).kept(),
        _counters_kept(owner, holders),
        _in_eval_mode(modules),
        sdpa_kernel(SDPBackend.MATH),
        torch.compiler.set_stance("force_eager"),
        _drawn_anew(seed, device, _generators_of(batches), generators),
    ):
        parts = collect(batches, max_batches)
        yield Objective(model, parts, loss, dtype, seed, generators)


@contextmanager
def _counters_kept(owner: Any, holders: Holders) -> Iterator[None]:
    """Context manager that restores what losses count and drops what they log."""
    names = {*COUNTED_ONCE, *counted_by(owner)}
    shared = [*holders.names, *holders.modules.values(), *holders.generators]
    with Counted(holders, names, shared).kept(), unlogged(owner):
        yield


def _generators_of(batches: Iterable[Any]) -> list[Generator]:
    """Return the generators of a data loader and of its samplers."""
    if not isinstance(batches, DataLoader):
        return []
    of_batches = batches.batch_sampler
    holders = (batches, batches.sampler, of_batches, getattr(of_batches, "sampler", None))
    found = (getattr(holder, "generator", None) for holder in holders)
    return [generator for generator in found if isinstance(generator, Generator)]


@contextmanager
def _drawn_anew(
    seed: int, device: torch.device, loader: Sequence[Generator], others: Sequence[OwnGenerator]
) -> Iterator[None]:
    """Context manager that seeds the generators of device and loader, and restores all."""
    before = random_state([device], [*loader, *others])
    try:
        with seeded(seed):
            if device.type != "cpu":
                drawn = Generator(device).manual_seed(seed).get_state()
                set_random_state(replace(random_state([]), devices={device: drawn}))
            for generator in loader:
                generator.manual_seed(seed)
            yield
    finally:
        set_random_state(before)


@contextmanager
def _in_eval_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Context manager for eval mode; sets flags, as some models' `eval()` does more than that."""
    was_training = {module: module.training for module in modules}
    rnns = any(isinstance(module, nn.RNNBase) for module in was_training)
    try:
        for module in was_training:
            module.training = False
        # cuDNN has no backward pass for recurrent networks in eval mode
        with torch.backends.cudnn.flags(enabled=False) if rnns else nullcontext():
            yield
    finally:
        for module, training in was_training.items():
            module.training = training


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Context manager that removes Accelerate's autocast wrapper from a model's forward pass."""
    names = ("forward", "_original_forward")
    kept = {name: vars(model)[name] for name in names if name in vars(model)}
    if "_original_forward" in kept:
        vars(model)["forward"] = kept["_original_forward"]
    try:
        yield
    finally:
        vars(model).update(kept)


def _device_of(trainable: Sequence[Tensor]) -> torch.device:
    """Return the device of the parameters; raise a ValueError if they cannot be measured."""
    if not trainable:
        raise ValueError(
            "sharpness needs trainable parameters, got a model without one that has "
            "`requires_grad`: unfreeze those that were trained."
        )
    if any(isinstance(param, DTensor) or hasattr(param, "ds_id") for param in trainable):
        raise ValueError(
            "sharpness needs whole parameters, got shards of FSDP2, tensor parallelism or "
            "DeepSpeed's ZeRO-3: save the model and measure it in one process."
        )
    if any(param.is_complex() for param in trainable):
        raise ValueError("sharpness needs real parameters, got complex ones.")
    devices = sorted({str(param.device) for param in trainable})
    if len(devices) > 1 or devices == ["meta"]:
        raise ValueError(
            "sharpness needs all parameters on one device, and not on `meta`, got "
            f"{', '.join(devices)}: move the model to one."
        )
    return trainable[0].device
