"""A model held still while it is measured, and left exactly as it was."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..replay import Buffers, random_state, set_random_state
from .batches import collect
from .objective import LossFunction, Objective, model_loss


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
    """Give the loss as a function of the weights; afterwards all is as it was, bit for bit.

    The model's parameters are never written to: losses at other weights are computed with copies
    in their place. While the block runs the model is in eval mode (no dropout, BatchNorm with its
    running statistics), attention takes the kernel that has second derivatives, and nothing is
    compiled. Random draws of the forward pass, if there are any, are the same at all weights.

    Args:
        model: Any module; wrappers for parallel training and compiled ones are looked through.
        batches: Of a data loader, of any sizes. Kept in memory, on the host. Each is one
            micro-batch: the memory needed is that of the largest.
        loss: The mean loss of a batch.
        max_batches: Use the first so many; None for all.
        seed: Of the loader's order, where it shuffles, and of the model's draws.
        dtype: To compute in; None for the weights' own, float32 where that has fewer bits.

    Yields:
        The objective. Memory: one copy of the parameters.

    Raises:
        ValueError: If there is nothing to measure, or the loss is not finite.
    """
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    device = _device_of(trainable)
    was_training = {module: module.training for module in model.modules()}
    before = random_state([device])
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        Buffers(model.modules()).kept(),
        sdpa_kernel(SDPBackend.MATH),
        torch.compiler.set_stance("force_eager"),
    ):
        try:
            torch.manual_seed(seed)
            parts = collect(batches, max_batches)
            model.eval()
            yield Objective(model, parts, loss, dtype, seed)
        finally:
            for module, training in was_training.items():
                module.training = training
            set_random_state(before)


def _device_of(trainable: Sequence[Tensor]) -> torch.device:
    """Return the one device of parameters that can be measured, or say why they cannot."""
    if not trainable:
        raise ValueError(
            "sharpness needs trainable parameters, got a model without one that has "
            "`requires_grad`: unfreeze those that were trained."
        )
    if any(isinstance(param, DTensor) for param in trainable):
        raise ValueError(
            "sharpness needs whole parameters, got shards (DTensor) of FSDP2 or tensor "
            "parallelism: save the model and measure it in one process."
        )
    devices = sorted({str(param.device) for param in trainable})
    if len(devices) > 1 or devices == ["meta"]:
        raise ValueError(
            f"sharpness needs a model on one device that computes, got {', '.join(devices)}: move "
            "it to one."
        )
    return trainable[0].device
