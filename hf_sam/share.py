"""A share of a micro-batch, on which `ascent_fraction` has the clean pass made."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import Trainer
from transformers.utils import logging

from .loss_scale import count_items
from .schedule import SMALLEST_CUT
from .window import MicroBatch

logger = logging.get_logger(__name__)
REMEDY = "set `ascent_interval` instead of it, or of `max_overhead`."


def share_of(trainer: Trainer, micro_batch: MicroBatch, fraction: float) -> MicroBatch:
    """Return the first examples of a micro-batch, with the label items that go with them.

    Args:
        trainer: Whose settings say how label items are counted.
        micro_batch: Whole.
        fraction: Of the examples, in (0, 1]; rounded up to whole ones.

    Raises:
        ValueError: If the examples cannot be told apart.
    """
    if fraction == 1:
        return micro_batch
    inputs, items = micro_batch.inputs, micro_batch.num_items_in_batch
    is_chosen = trainer.sam_arguments.max_overhead is not None  # for the user, who chose no share
    first = first_examples(inputs, fraction, least=SMALLEST_CUT if is_chosen else 1)
    if items is not None and isinstance(inputs.get("labels"), Tensor):
        of_all, of_first = count_items(trainer, inputs), count_items(trainer, first)
        # of no labels the loss is nan in the plain Trainer too
        items = items * of_first.clamp(min=1) / of_all.clamp(min=1)
    return replace(micro_batch, inputs=first, num_items_in_batch=items)


def first_examples(inputs: Mapping[str, Any], fraction: float, least: int = 1) -> dict[str, Any]:
    """Cut what has one entry for each example: tensors by their first dimension, and lists.

    Kept whole are tensors of another length with one dimension, and those of one row.

    Args:
        inputs: With the number of examples in the labels, or else in the first tensor that has a
            dimension.
        fraction: Of the examples.
        least: Examples to keep, also of a short micro-batch.

    Raises:
        ValueError: If no tensor says how many examples there are, or one has other rows.
    """
    tensors = [x for x in inputs.values() if isinstance(x, Tensor) and x.ndim]
    labels = inputs.get("labels")
    if isinstance(labels, Tensor) and labels.ndim:
        tensors.insert(0, labels)
    if not tensors:
        raise ValueError(
            "`ascent_fraction` must find the examples in the first dimension of a tensor, got "
            f"inputs of {', '.join(f'{k}: {type(x).__name__}' for k, x in inputs.items())}: "
            f"{REMEDY}"
        )
    size = len(tensors[0])
    for name, x in inputs.items():
        if isinstance(x, Tensor) and x.ndim > 1 and len(x) not in (1, size):
            raise ValueError(
                "`ascent_fraction` must find one row for each example in every tensor, got "
                f"`{name}` of shape {tuple(x.shape)} beside {size} examples: {REMEDY}"
            )
    if size == 1:
        logger.warning_once(
            "A micro-batch of one row cannot be cut, and is passed over whole in both passes. If "
            f"`ascent_fraction` meets more of them: {REMEDY}"
        )
    kept = max(least, math.ceil(round(fraction * size, 9)))
    return {name: x[:kept] if _has_length(x, size) else x for name, x in inputs.items()}


def _has_length(x: Any, size: int) -> bool:
    is_row_wise = isinstance(x, list | tuple) or (isinstance(x, Tensor) and x.ndim > 0)
    return is_row_wise and len(x) == size
