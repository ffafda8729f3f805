"""A Trainer's own model, data and loss, as what the measurements take."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer

from .loss import LossFunction


class Measured(NamedTuple):
    """The first three arguments of every measurement: `sharpness(*of_trainer(trainer))`."""

    model: nn.Module
    batches: Iterable[Any]
    loss: LossFunction


def of_trainer(trainer: Trainer, data: Dataset[Any] | None = None) -> Measured:
    """Take model, batches and loss from a Trainer: its collator, label smoothing and own losses.

    Args:
        trainer: Trains on as it would have.
        data: What to measure on, in its order; None for the training data, whose loss SAM flattens.

    Returns:
        The model, batches of the evaluation's size, and the loss. They take no part in what the
        Trainer shares out among processes: each process gets all batches.

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

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return trainer.compute_loss(model, trainer._prepare_inputs(dict(batch)))

    return Measured(trainer.model, loader, loss)
