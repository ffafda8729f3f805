"""The same inputs for both passes, also of a model or a loss that changes them in place."""

from dataclasses import replace

import torch
from accelerate.utils import recursively_apply

from .window import MicroBatch


def copied(micro_batch: MicroBatch) -> MicroBatch:
    """Return a copy for the first of two passes, of the tensors within containers too.

    Always, as a mixup or a mask may be drawn for some batches only: once a batch has been changed
    it is too late. Costs a copy of the inputs in memory, for the length of the pass.
    """
    return replace(micro_batch, inputs=recursively_apply(torch.clone, micro_batch.inputs))
