"""Copies of a micro-batch's inputs, so that both passes see the same ones."""

import copy
from dataclasses import replace
from typing import Any

from accelerate.utils import recursively_apply
from torch import Tensor

from .window import MicroBatch


def copied(micro_batch: MicroBatch) -> MicroBatch:
    """Return a copy of a micro-batch and all of its inputs, for the first of two passes.

    Needed always, as a model may change the inputs in place for some batches only (mixup, masking).
    Costs a copy of the inputs in memory, for the duration of the pass.

    Raises:
        ValueError: If an input cannot be copied.
    """
    known: dict[int, Any] = {}

    def clone(tensor: Tensor) -> Tensor:  # deepcopy would copy the whole storage of a view
        known[id(tensor)] = tensor.clone()
        return tensor

    recursively_apply(clone, micro_batch.inputs)
    try:
        return replace(micro_batch, inputs=copy.deepcopy(micro_batch.inputs, known))
    except TypeError as error:  # as of generators, locks, files
        raise ValueError(
            f"SAM must copy each batch for its first pass, got one that it cannot ({error}): have "
            "the data collator return tensors, numbers and texts."
        ) from error
