"""A clean pass whose gradient overflows under fp16, after which the step is to be skipped."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..ascent.shards import local
from ..backends.backward import Backward, backward_by


@contextmanager
def overflow_kept(
    accelerator: Accelerator, perturbation: Iterable[Tensor | None], norm: Tensor
) -> Iterator[None]:
    """Context manager in which an overflow of the clean pass is one of the perturbed passes.

    A perturbation that is not finite would put nan in all weights, which some models refuse (those
    that check boxes or probabilities). So it becomes zero, and the gradients of the passes nan
    instead: the gradient scaler then skips the step on all ranks, as in the plain Trainer.

    Args:
        accelerator: Of the Trainer; without fp16 the block changes nothing.
        perturbation: Epsilon, one tensor for each parameter, or None. Changed in place.
        norm: Of the clean gradient, of shape (), detached; not finite after an overflow.

    Yields:
        Nothing. Cost: one pass over epsilon.
    """
    is_fp16 = accelerator.scaler is not None or accelerator.mixed_precision == "fp16"
    if is_fp16:
        _make_finite(perturbation)
    del perturbation  # or its memory would be held until the block ends

    def backward(whole: Backward, loss: Tensor, kwargs: Mapping[str, Any]) -> None:
        factor = 1.0 + 0.0 * norm  # 1 or nan, without asking the device which
        whole(loss * factor.to(loss.device, loss.dtype), **kwargs)

    with backward_by(accelerator, backward) if is_fp16 else nullcontext():
        yield


@torch.no_grad()
def _make_finite(vector: Iterable[Tensor | None]) -> None:
    for x in vector:
        if x is not None:
            local(x).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
