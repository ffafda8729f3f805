"""A share of a micro-batch, on which `ascent_fraction` has the clean pass made."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import Trainer
from transformers.utils import logging

from .loss_scale import count_items
from .schedule import SMALLEST_CUT, kept_rows
from .window import MicroBatch

logger = logging.get_logger(__name__)
REMEDY = "set `ascent_interval` instead of it, or of `max_overhead`."


def share_of(trainer: Trainer, micro_batch: MicroBatch, fraction: float) -> MicroBatch:
    """Return the first examples of a micro-batch, with the label items that go with them.

    Args:
        trainer: Whose settings say how label items are counted.
        micro_batch: Whole.
        fraction: Of the examples, in (0, 1]; rounded up to whole ones, and to two where one may
            be too few.

    Raises:
        ValueError: If the examples cannot be told apart.
    """
    if fraction == 1:
        return micro_batch
    inputs, items = micro_batch.inputs, micro_batch.num_items_in_batch
    is_chosen = trainer.sam_arguments.max_overhead is not None  # for the user, who chose no share
    needs_two = is_chosen or any(isinstance(m, _BatchNorm) for m in trainer.model.modules())
    first = first_examples(inputs, fraction, least=SMALLEST_CUT if needs_two else 1)
    if items is not None and isinstance(inputs.get("labels"), Tensor):
        of_all, of_first = count_items(trainer, inputs), count_items(trainer, first)
        items = items * of_first.clamp(min=1) / of_all.clamp(min=1)
    return replace(micro_batch, inputs=first, num_items_in_batch=items)


def first_examples(inputs: Mapping[str, Any], fraction: float, least: int = 1) -> dict[str, Any]:
    """Cut what has one entry for each example: tensors by their first dimension, and lists.

    Examples whose labels are all -100 come last, as the loss of such alone may be 0 / 0. Kept whole
    are tensors of another length with one dimension, and those of one row.

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
    _require_rows(inputs, size)
    if size == 1:
        logger.warning_once(
            "A micro-batch of one row cannot be cut, and is passed over whole in both passes. If "
            f"`ascent_fraction` meets more of them: {REMEDY}"
        )
    rows = _first_rows(labels, size, max(least, kept_rows(fraction, size)))
    return {name: _cut(x, rows) if _has_length(x, size) else x for name, x in inputs.items()}


def _require_rows(inputs: Mapping[str, Any], size: int) -> None:
    for name, x in inputs.items():
        if isinstance(x, Tensor) and x.ndim > 1 and len(x) not in (1, size):
            raise ValueError(
                "`ascent_fraction` must find one row for each example in every tensor, got "
                f"`{name}` of shape {tuple(x.shape)} beside {size} examples: {REMEDY}"
            )
        is_list = isinstance(x, list) and len(x) == size  # with one entry for each example
        inner = x.values() if isinstance(x, Mapping) else x if isinstance(x, list | tuple) else ()
        if not is_list and any(isinstance(y, Tensor) and _has_length(y, size) for y in inner):
            raise ValueError(
                "`ascent_fraction` must find tensors beside each other, got some of a row for "
                f"each example inside `{name}`, a {type(x).__name__}: {REMEDY}"
            )


def _first_rows(labels: Any, size: int, kept: int) -> Tensor | slice:
    """Return which rows are kept, without synchronising with the host."""
    if not isinstance(labels, Tensor) or labels.ndim == 0 or labels.is_floating_point():
        return slice(kept)
    is_unlabelled = labels.eq(-100).reshape(size, labels.numel() // size).all(dim=1)
    return is_unlabelled.int().argsort(stable=True)[:kept]


def _cut(x: Any, rows: Tensor | slice) -> Any:
    if isinstance(rows, slice):
        return x[rows]
    return x[rows.to(x.device)] if isinstance(x, Tensor) else [x[i] for i in rows.tolist()]


def _has_length(x: Any, size: int) -> bool:
    is_row_wise = isinstance(x, list | tuple) or (isinstance(x, Tensor) and x.ndim > 0)
    return is_row_wise and len(x) == size
