"""Hessian-vector products by automatic differentiation."""

from collections.abc import Sequence

import torch
from torch import Tensor


class SecondDerivativeError(ValueError):
    """An operation of the model has no second derivative."""

    def __init__(self, operation: str) -> None:
        """Build the message from the operation's name."""
        super().__init__(
            "the Hessian needs second derivatives, which an operation of this model has not "
            f"({operation}): replace it, e.g. load a transformers model with "
            "`attn_implementation='eager'`."
        )


def hessian_product(
    loss: Tensor, at: Sequence[Tensor], along: Sequence[Tensor]
) -> Sequence[Tensor] | None:
    """Multiply a loss's Hessian by a vector: the gradient of the gradient's inner product with it.

    See section 3.1 of Pearlmutter, 1994; here by reverse mode twice.

    Args:
        loss: Of shape (), with its graph.
        at: The tensors to differentiate by.
        along: The vector, one tensor for each.

    Returns:
        The product, one tensor for each; zero where the gradient is constant, None if the loss has
        no graph. Costs a backward pass, and a backward pass through that one.

    Raises:
        SecondDerivativeError: If an operation has no second derivative.
    """
    if not loss.requires_grad:
        return None
    gradient = torch.autograd.grad(loss, at, create_graph=True, materialize_grads=True)
    _require_second_derivatives(gradient)
    pairs = [(g, v) for g, v in zip(gradient, along, strict=True) if g.requires_grad]
    if not pairs:
        return [torch.zeros_like(w) for w in at]
    varying, factors = zip(*pairs, strict=True)
    try:
        return torch.autograd.grad(varying, at, factors, materialize_grads=True)
    except RuntimeError as error:
        if "deriv" not in str(error):
            raise
        raise SecondDerivativeError(str(error).splitlines()[0]) from error


def _require_second_derivatives(gradient: Sequence[Tensor]) -> None:
    """Raise for functions that are differentiable only once, which autograd skips silently."""
    found, waiting = set(), [g.grad_fn for g in gradient]
    while waiting:
        node = waiting.pop()
        if node is None or node in found:
            continue
        if node.name() == "torch::autograd::Error":
            raise SecondDerivativeError("a function marked `once_differentiable`")
        found.add(node)
        waiting += [following for following, _ in node.next_functions]
