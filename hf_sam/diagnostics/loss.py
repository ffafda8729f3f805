"""Loss functions of a model and a batch, for the measurements."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.nn.functional as F
from accelerate.utils.operations import recursively_apply
from torch import Tensor, nn
from transformers import Trainer

LossFunction = Callable[[nn.Module, Any], Tensor]  # model, batch -> mean loss of shape ()
T = TypeVar("T")


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """Compute the mean loss of a batch: the model's own, or the cross-entropy.

    Args:
        model: Called with the entries of a mapping, or with the inputs of a pair.
        batch: A mapping with labels, for which the model returns the loss, as transformers' models
            do; or a pair of inputs and labels (N,).

    Returns:
        Of shape ().

    Raises:
        ValueError: If the batch is of another kind, or the model returns no loss.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2:
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels)
    if not isinstance(batch, Mapping):
        raise ValueError(
            "a batch must be a mapping, or a pair of inputs and labels, got "
            f"{type(batch).__name__}: pass `loss`, a function of model and batch."
        )
    outputs = model(**batch)
    if isinstance(outputs, Tensor):
        return outputs
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs[0]
    if loss is None:
        raise ValueError(
            f"the model must return a loss, got none for a batch of {', '.join(batch)}: put "
            "`labels` into the batches, or pass `loss`, a function of model and batch."
        )
    return loss


@dataclass(frozen=True)
class TrainerLoss:
    """A Trainer's loss, with its label smoothing, as a function of model and batch."""

    trainer: Trainer

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Compute the mean loss of a batch of any size, of shape ()."""
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())

        def to_models(x: Tensor) -> Tensor:  # DeepSpeed's Trainer casts inputs to another dtype
            return x.to(dtype) if x.is_floating_point() else x

        inputs = self.trainer._prepare_inputs(dict(batch))
        return self.trainer.compute_loss(model, recursively_apply(to_models, inputs))


class HeldLoss(nn.Module):
    """Wraps model and loss in one module, so that `functional_call` can replace the weights."""

    def __init__(self, model: nn.Module, loss: LossFunction) -> None:
        """Store model and loss.

        Args:
            model: Its tensors get the prefix `model.`.
            loss: Function of model and batch.
        """
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any, use: Callable[[Tensor], T]) -> T:
        """Return the result of `use` for the loss of a batch.

        Raises:
            ValueError: If the loss is not one number.
        """
        loss = self.loss(self.model, batch)
        if not (isinstance(loss, Tensor) and loss.numel() == 1):
            raise ValueError(
                "`loss` must return a tensor of one number, the mean over the batch, got "
                f"{tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__}."
            )
        return use(loss.reshape(()))
