"""The objective: the mean loss over fixed examples as a function of a model's trainable weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import TypeVar

import torch
from accelerate.utils.operations import recursively_apply
from torch import Tensor, nn

from ..step.replay import Generator, RandomState, random_state, replayed
from .batches import Part, shares
from .loss import HeldLoss, LossFunction
from .second_derivative import hessian_product

Weights = dict[str, Tensor]  # trainable parameters by name
T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """The setting of a measurement: data, mode, dtype, device and seed."""

    loss: float  # mean over the examples, at the model's weights
    examples: int
    batches: int
    parameters: int  # trainable ones, a tied one counted once
    mode: str  # of dropout and BatchNorm
    dtype: str  # of weights and activations
    device: str
    seed: int


class Objective:
    """The mean loss over examples at any weights; created by `measuring`."""

    def __init__(
        self,
        model: nn.Module,
        parts: Sequence[Part],
        loss: LossFunction,
        dtype: torch.dtype | None,
        seed: int,
        generators: Sequence[Generator] = (),
    ) -> None:
        """Copy the weights and compute the loss there.

        Args:
            model: The model, in the mode to measure in.
            parts: The examples.
            loss: The mean loss of a batch.
            dtype: As for `measuring`.
            seed: For the record only.
            generators: Those that model and loss hold.

        Raises:
            ValueError: If the loss is not finite, or not one number.
        """
        self.parts = parts
        self._model = HeldLoss(model, loss)
        own = [p.dtype for p in model.parameters() if p.requires_grad]
        self.dtype = dtype or reduce(torch.promote_types, own, torch.float32)
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        state = {name: self._cast(p) for name, p in model.named_parameters()}
        self.weights: Weights = {name: p for name, p in state.items() if name in trainable}
        self._fixed = {name: p for name, p in state.items() if name not in trainable}
        self._buffers = {name: self._cast(b) for name, b in model.named_buffers()}
        self._saved = model.state_dict().keys()
        first = next(iter(self.weights.values()))
        self.device = first.device
        self._draws: RandomState = random_state({first.device}, generators)
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
            weights: One tensor for each trainable parameter, and for those other parameters and
                buffers that differ from the model's.
            parts: The examples; None for all.
        """
        total = 0.0
        with torch.no_grad():
            for part, share in shares(self.parts if parts is None else parts):
                total += share * self._with_loss(weights, part, float)
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

        Raises:
            ValueError: If the loss depends on no weight, or the gradient at the model's own weights
                is not finite.
        """
        at = _with_gradient(weights)
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        loss, depends = 0.0, False
        for part, share in shares(self.parts if parts is None else parts):
            of_part, found = self._with_loss(at, part, partial(_gradient, at=list(at.values())))
            loss, depends = loss + share * of_part, depends or found is not None
            for sum_, g in zip(total.values(), found or (), strict=found is not None):
                sum_.add_(g.to_dense() if g.is_sparse else g, alpha=share)
        _require_dependence(depends)
        if weights is self.weights and not all(g.isfinite().all() for g in total.values()):
            raise ValueError(
                "sharpness needs a finite gradient, got one that is not: the loss is not "
                "differentiable at these weights, or overflows (try `dtype=torch.float64`)."
            )
        return loss, total

    def hessian_product(self, vector: Weights) -> Weights:
        """Multiply the Hessian at the model's weights by a vector.

        Args:
            vector: One tensor for each weight, of its shape.

        Returns:
            The product, of the same form. Costs about two forward-backward passes over the
            examples, and the memory of about three training steps on the largest batch: batches of
            half the training's size stay within twice a training step's.

        Raises:
            ValueError: If an operation of the model has no second derivative.
        """
        at, along = _with_gradient(self.weights), list(vector.values())
        total = {name: torch.zeros_like(w) for name, w in at.items()}
        product = partial(hessian_product, at=list(at.values()), along=along)
        depends = False
        for part, share in shares(self.parts):
            found = self._with_loss(at, part, product)
            depends = depends or found is not None
            for sum_, x in zip(total.values(), found or (), strict=found is not None):
                sum_.add_(x, alpha=share)
        _require_dependence(depends)
        return total

    def moved(self, direction: Weights, by: float = 1.0) -> Weights:
        """Return the model's weights plus `by` times a direction."""
        return {name: w + by * direction[name] for name, w in self.weights.items()}

    def difference(self, other: Mapping[str, Tensor]) -> Weights:
        """Return another model's state minus this one's, for every floating-point tensor.

        Args:
            other: Its `state_dict()`.

        Raises:
            ValueError: If it is of another architecture.
        """
        own = {**self._fixed, **self.weights, **self._buffers}
        shapes = {name: tuple(own[name].shape) for name in own if name in self._saved}
        others = {name: tuple(x.shape) for name, x in other.items()}
        for name in [*shapes, *(name for name in others if name not in self._saved)]:
            if shapes.get(name) != others.get(name):
                raise ValueError(
                    "both models must be of one architecture, got for "
                    f"`{name}` {shapes.get(name, 'none')} and {others.get(name, 'none')}: compare "
                    "checkpoints of the same network."
                )
        return {
            name: other[name].to(x) - x
            for name, x in own.items()
            if name in other and x.is_floating_point()
        }

    def towards(self, way: Weights, by: float) -> Weights:
        """Return the state interpolated towards another model by a fraction of their `difference`.

        Buffers are not extrapolated: a variance could become negative.
        """
        own = {**self._fixed, **self.weights, **self._buffers}
        between = min(max(by, 0.0), 1.0)
        return {
            name: own[name] + (between if name in self._buffers else by) * x
            for name, x in way.items()
        }

    def _with_loss(self, weights: Weights, part: Part, use: Callable[[Tensor], T]) -> T:
        """Return the result of `use` for a part's loss with these weights.

        `use` runs with the weights in place, as activation checkpointing repeats the forward pass.
        """
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        state = {**self._fixed, **buffers, **weights}
        batch = recursively_apply(self._for_model, part.batch)
        with replayed(self._draws):
            return torch.func.functional_call(
                self._model, {f"model.{name}": x for name, x in state.items()}, (batch, use)
            )

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
        """Return a copy in the dtype to measure in, which the model may change."""
        x = x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)
        return x.clone(memory_format=torch.contiguous_format)

    def _cast(self, x: Tensor) -> Tensor:
        """Return a copy in the default memory format, where second derivatives are much faster."""
        dtype = self.dtype if x.is_floating_point() else x.dtype
        return x.detach().to(dtype).clone(memory_format=torch.contiguous_format)


def _with_gradient(weights: Weights) -> Weights:
    return {name: w.detach().requires_grad_() for name, w in weights.items()}


def _gradient(loss: Tensor, at: Sequence[Tensor]) -> tuple[float, Sequence[Tensor] | None]:
    """Return the loss and its gradient, None if the loss has no graph."""
    if not loss.requires_grad:
        return float(loss), None
    return float(loss.detach()), torch.autograd.grad(loss, at, materialize_grads=True)


def _require_dependence(depends: bool) -> None:
    if not depends:
        raise ValueError(
            "the loss must depend on the trainable parameters, got one without a gradient: the "
            "model or `loss` detaches it, or computes without gradients in eval mode."
        )


def _mode(model: nn.Module) -> str:
    norms = [m for m in model.modules() if "BatchNorm" in type(m).__name__]  # frozen ones too
    means = [norm.running_mean for norm in norms if hasattr(norm, "running_mean")]  # no wrappers
    if not means:
        return "eval mode, no BatchNorm"
    if any(mean is None for mean in means):
        return "eval mode, BatchNorm with the statistics of the batch: it keeps no others"
    return "eval mode, BatchNorm with its running statistics"
