"""The same inputs for both passes, also of a model or a loss that changes them in place."""

import copy
from dataclasses import replace
from typing import Any

from accelerate.utils import recursively_apply
from torch import Tensor

from .window import MicroBatch


def copied(micro_batch: MicroBatch) -> MicroBatch:
    """Return a copy for the first of two passes, of all that the inputs hold.

    Always, as a mixup or a mask may be drawn for some batches only: once a batch has been changed
    it is too late. Costs a copy of the inputs in memory, for the length of the pass.
    """
    known: dict[int, Any] = {}

    def clone(tensor: Tensor) -> None:  # where deepcopy would copy all that a view is cut from
        known[id(tensor)] = tensor.clone()

    recursively_apply(clone, micro_batch.inputs)
    return replace(micro_batch, inputs=copy.deepcopy(micro_batch.inputs, known))
