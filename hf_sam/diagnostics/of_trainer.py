"""A Trainer's model, data and loss as the arguments of the measurements."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer

from .loss import LossFunction, TrainerLoss


class Measured(NamedTuple):
    """The first three arguments of every measurement: `sharpness(*of_trainer(trainer))`."""

    model: nn.Module
    batches: Iterable[Any]
    loss: LossFunction


def of_trainer(trainer: Trainer, data: Dataset[Any] | None = None) -> Measured:
    """Return a Trainer's model, batches and loss, with its collator, label smoothing and loss.

    Args:
        trainer: The Trainer; its training is not affected.
        data: Data set to measure on, in order; None for the training data, whose loss SAM flattens.

    Returns:
        The model, batches of the evaluation's size, and the loss. The batches are not distributed
        over processes: each process gets all of them.

    Raises:
        ValueError: If there is no data.
    """
    data = trainer.train_dataset if data is None else data
    if data is None or isinstance(data, dict):
        raise ValueError(
            "sharpness needs one data set, got a Trainer without training data or a dict of data "
            "sets: pass the one that is meant as `data`."
        )
    prepared = trainer.get_test_dataloader(data)  # with the columns that the model takes
    loader = DataLoader(
        prepared.dataset, batch_size=trainer.args.eval_batch_size, collate_fn=prepared.collate_fn
    )
    return Measured(trainer.model, loader, TrainerLoss(trainer))
