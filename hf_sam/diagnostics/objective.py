"""The mean loss over fixed examples as a function of a model's trainable weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils.operations import recursively_apply
from torch import Tensor, nn

from ..replay import RandomState, random_state, replayed
from .batches import Part, groups_of, shares
from .second_derivative import hessian_product

Weights = dict[str, Tensor]  # trainable parameters by name
LossFunction = Callable[[nn.Module, Any], Tensor]  # model, batch -> mean loss of shape ()


@dataclass(frozen=True)
class Setup:
    """What a measurement was made on, and how."""

    loss: float  # mean over the examples, at the model's weights
    examples: int
    batches: int
    parameters: int  # trainable ones, a tied one counted once
    mode: str  # what dropout and BatchNorm did
    dtype: str  # of weights and activations
    device: str
    seed: int


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """Compute the mean loss of a batch: the model's own, or the cross-entropy.

    Args:
        model: Called with the entries of a mapping, or with the inputs of a pair.
        batch: A mapping with labels, of which the model returns the loss as transformers' models
            do; or a pair of inputs and labels (N,).

    Returns:
        Of shape ().

    Raises:
        ValueError: If the model returns no loss.
    """
    if not isinstance(batch, Mapping):
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels)
    outputs = model(**batch)
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs[0]
    if loss is None:
        raise ValueError(
            f"the model must return a loss, got none for a batch of {', '.join(batch)}: put "
            "`labels` into the batches, or pass `loss`, a function of model and batch."
        )
    return loss


class Objective:
    """A mean loss over examples; made by `measuring`."""

    def __init__(
        self,
        model: nn.Module,
        parts: Sequence[Part],
        loss: LossFunction,
        dtype: torch.dtype | None,
        seed: int,
    ) -> None:
        """Copy the weights and compute the loss there.

        Args:
            model: In the mode to measure in.
            parts: The examples.
            loss: The mean loss of a batch.
            dtype: As for `measuring`.
            seed: Told in the results.

        Raises:
            ValueError: If the loss is not finite, or not one number.
        """
        self.parts = parts
        self._halves = [h[0] for p in parts for h in groups_of([p], (p.examples + 1) // 2)]
        self._model = _Loss(model, loss)
        own = next(p.dtype for p in model.parameters() if p.requires_grad)
        self.dtype = dtype or torch.promote_types(own, torch.float32)
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        state = {name: self._cast(p) for name, p in model.named_parameters()}
        self.weights: Weights = {name: p for name, p in state.items() if name in trainable}
        self._fixed = {name: p for name, p in state.items() if name not in trainable}
        self._buffers = {name: self._cast(b) for name, b in model.named_buffers()}
        self._saved = model.state_dict().keys()
        first = next(iter(self.weights.values()))
        self.device = first.device
        self._draws: RandomState = random_state({first.device})
        self.setup = Setup(
            loss=self._checked_loss(),
            examples=sum(part.examples for part in parts),
            batches=len(parts),
            parameters=sum(w.numel() for w in self.weights.values()),
            mode=_mode(model),
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            seed=seed,
        )

    def mean_loss(self, weights: Weights, parts: Sequence[Part] | None = None) -> float:
        """Compute the mean loss of the examples; one forward pass over them.

        Args:
            weights: One tensor for each trainable parameter, and for others and buffers where they
                differ from the model's.
            parts: The examples; None for all.
        """
        total = 0.0
        with torch.no_grad():
            for part, share in shares(self.parts if parts is None else parts):
                total += share * float(self._loss_of(weights, part))
        return total

    def gradient(
        self, weights: Weights, parts: Sequence[Part] | None = None
    ) -> tuple[float, Weights]:
        """Compute mean loss and gradient; one forward-backward pass over the examples.

        Args:
            weights: One tensor for each trainable parameter.
            parts: The examples; None for all.

        Returns:
            The loss, and one tensor for each weight, zero where the loss does not depend on it.
        """
        at = _with_gradient(weights)
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        loss = 0.0
        for part, share in shares(self.parts if parts is None else parts):
            of_part = self._loss_of(at, part)
            loss += share * float(of_part.detach())
            if of_part.requires_grad:
                found = torch.autograd.grad(of_part, list(at.values()), materialize_grads=True)
                for sum_, g in zip(total.values(), found, strict=True):
                    sum_.add_(g.to_dense() if g.is_sparse else g, alpha=share)
        return loss, total

    def hessian_product(self, vector: Weights) -> Weights:
        """Multiply the Hessian at the model's weights by a vector.

        Args:
            vector: One tensor for each weight, of its shape.

        Returns:
            Likewise. Costs about two forward-backward passes over the examples. Batches are halved
            on the way: that takes less than twice the memory of a training step on a whole one.

        Raises:
            ValueError: If an operation of the model has no second derivative.
        """
        at, along = _with_gradient(self.weights), list(vector.values())
        total = {name: torch.zeros_like(w) for name, w in at.items()}
        for part, share in shares(self._halves):
            found = hessian_product(self._loss_of(at, part), list(at.values()), along)
            for sum_, x in zip(total.values(), found, strict=True):
                sum_.add_(x, alpha=share)
        return total

    def moved(self, direction: Weights, by: float = 1.0) -> Weights:
        """Return the model's weights plus `by` times a direction."""
        return {name: w + by * direction[name] for name, w in self.weights.items()}

    def difference(self, other: Mapping[str, Tensor]) -> Weights:
        """Return another model's state minus this one's, for every tensor of floating point.

        Args:
            other: As `state_dict()` gives it.

        Raises:
            ValueError: If it is of another architecture.
        """
        own = {**self._fixed, **self.weights, **self._buffers}
        for name, x in own.items():
            saved = name in self._saved
            if saved and (name not in other or other[name].shape != x.shape):
                found = tuple(other[name].shape) if name in other else "none"
                raise ValueError(
                    f"both models must be of one architecture, got for `{name}` {tuple(x.shape)} "
                    f"and {found}: compare checkpoints of the same network."
                )
        return {
            name: other[name].to(x) - x
            for name, x in own.items()
            if name in other and x.is_floating_point()
        }

    def towards(self, way: Weights, by: float) -> Weights:
        """Return the whole state moved by a share of what `difference` has returned.

        Buffers do not move beyond the two models: a variance could become negative.
        """
        own = {**self._fixed, **self.weights, **self._buffers}
        between = min(max(by, 0.0), 1.0)
        return {
            name: own[name] + (between if name in self._buffers else by) * x
            for name, x in way.items()
        }

    def _loss_of(self, weights: Weights, part: Part) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        state = {**self._fixed, **buffers, **weights}
        batch = recursively_apply(self._for_model, part.batch)
        with replayed(self._draws):
            loss = torch.func.functional_call(
                self._model, {f"model.{name}": x for name, x in state.items()}, (batch,)
            )
        if not (isinstance(loss, Tensor) and loss.numel() == 1):
            raise ValueError(
                "`loss` must return a tensor of one number, the mean over the batch, got "
                f"{tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__}."
            )
        return loss.reshape(())

    def _checked_loss(self) -> float:
        total = 0.0
        for i, (part, share) in enumerate(shares(self.parts)):
            loss = self.mean_loss(self.weights, [part])
            if not math.isfinite(loss):
                raise ValueError(
                    f"sharpness needs a finite loss, got {loss} on batch {i}: the model has "
                    "diverged, or the batch holds values that are not finite."
                )
            total += share * loss
        return total

    def _for_model(self, x: Tensor) -> Tensor:
        x = x.to(self.device, self.dtype if x.is_floating_point() else None)
        return x.contiguous()

    def _cast(self, x: Tensor) -> Tensor:
        """A copy in the default memory format, in which second derivatives are much faster."""
        dtype = self.dtype if x.is_floating_point() else x.dtype
        return x.detach().to(dtype).clone(memory_format=torch.contiguous_format)


class _Loss(nn.Module):
    """Holds the model where its tensors can be replaced for one call."""

    def __init__(self, model: nn.Module, loss: LossFunction) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch)


def _with_gradient(weights: Weights) -> Weights:
    return {name: w.detach().requires_grad_() for name, w in weights.items()}


def _mode(model: nn.Module) -> str:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return "eval mode, no BatchNorm"
    if any(norm.running_mean is None for norm in norms):
        return "eval mode, BatchNorm with the statistics of the batch: it keeps no others"
    return "eval mode, BatchNorm with its running statistics"
