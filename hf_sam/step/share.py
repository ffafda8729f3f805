"""The part of a micro-batch that the clean pass uses, by `ascent_fraction`."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer
from transformers.utils import logging

from ..ascent.schedule import AscentSchedule
from .loss_scale import count_items
from .window import MicroBatch

logger = logging.get_logger(__name__)
SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)  # the dtypes that hold -100
REMEDY = "set `ascent_interval` instead of it, or of `max_overhead`."


def share_of(trainer: Trainer, micro_batch: MicroBatch, schedule: AscentSchedule) -> MicroBatch:
    """Return the first examples of a micro-batch, with their part of the label items.

    Args:
        trainer: The Trainer, whose settings say how label items are counted.
        micro_batch: The whole micro-batch.
        schedule: The ascent schedule, which sets the number of examples.

    Raises:
        ValueError: If the inputs cannot be split into examples.
    """
    if schedule.fraction == 1:
        return micro_batch
    inputs, items = micro_batch.inputs, micro_batch.num_items_in_batch
    if not isinstance(inputs, Mapping):
        raise ValueError(
            "`ascent_fraction` must find tensors by name, got inputs that are a "
            f"{type(inputs).__name__}: {REMEDY}"
        )
    first = first_examples(inputs, schedule.kept)
    if items is not None and isinstance(inputs.get("labels"), Tensor):
        of_all, of_first = count_items(trainer, inputs), count_items(trainer, first)
        items = items * of_first.clamp(min=1) / of_all.clamp(min=1)
    return replace(micro_batch, inputs=first, num_items_in_batch=items)


def first_examples(inputs: Mapping[str, Any], kept: Callable[[int], int]) -> Any:
    """Return the first examples of a batch: rows of its tensors and arrays, entries of its lists.

    Examples whose labels are all -100 come last, as the loss over them alone may be 0 / 0. Tensors
    of one dimension and another length, and those of one row, are returned whole.

    Args:
        inputs: The number of examples is the length of the labels, or else of the first tensor that
            has a dimension.
        kept: Maps the number of examples to the number that are returned.

    Raises:
        ValueError: If no tensor gives the number of examples, or one has other rows.

    Returns:
        A mapping of the kind that `inputs` is.
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
    if size == 1:
        logger.warning_once(
            "A micro-batch of one row cannot be cut, and is passed over whole in both passes. If "
            f"`ascent_fraction` meets more of them: {REMEDY}"
        )
        return inputs
    _require_rows(inputs, size)
    rows = _first_rows(labels, kept(size))
    first: Any = copy.copy(inputs)
    for name, x in inputs.items():
        if _has_length(x, size):
            first[name] = _cut(x, rows)
    return first


def _require_rows(inputs: Mapping[str, Any], size: int) -> None:
    for name, x in inputs.items():
        if isinstance(x, Tensor | np.ndarray) and x.ndim > 1 and len(x) not in (1, size):
            raise ValueError(
                "`ascent_fraction` must find one row for each example in every tensor, got "
                f"`{name}` of shape {tuple(x.shape)} beside {size} examples: {REMEDY}"
            )
        inner = [] if isinstance(x, Tensor) or _has_length(x, size) else _tensors_in(x)
        if any(_has_length(y, size) for y in inner):
            raise ValueError(
                "`ascent_fraction` must find tensors beside each other, got some of a row for "
                f"each example inside `{name}`, a {type(x).__name__}: {REMEDY}"
            )


def _tensors_in(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, Mapping | list | tuple):
        for inner in x.values() if isinstance(x, Mapping) else x:
            yield from _tensors_in(inner)


def _first_rows(labels: Any, kept: int) -> Tensor | slice:
    """Return which rows are kept, without synchronising with the host."""
    if not (isinstance(labels, Tensor) and labels.ndim and labels.dtype in SIGNED):
        return slice(kept)
    is_unlabelled = labels.eq(-100)
    while is_unlabelled.ndim > 1:
        is_unlabelled = is_unlabelled.all(dim=-1)
    return is_unlabelled.int().argsort(stable=True)[:kept]


def _cut(x: Any, rows: Tensor | slice) -> Any:
    if isinstance(x, Tensor):
        return x[rows if isinstance(rows, slice) else rows.to(x.device)]
    if isinstance(x, np.ndarray):
        return x[rows if isinstance(rows, slice) else rows.cpu().numpy()]
    kind = list if isinstance(x, list) else tuple
    return x[rows] if isinstance(rows, slice) else kind(x[i] for i in rows.tolist())


def _has_length(x: Any, size: int) -> bool:
    is_array = isinstance(x, Tensor | np.ndarray)
    is_row_wise = isinstance(x, list | tuple) or (is_array and x.ndim > 0)
    return is_row_wise and len(x) == size
