"""A backward pass that goes no further than the gradients that are used."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.autograd.function import BackwardCFunction


@contextmanager
def backward_to(
    accelerator: Accelerator, leaves: Callable[[], Sequence[Tensor] | None]
) -> Iterator[None]:
    """Context manager in which `accelerator.backward` computes the gradients of some leaves alone.

    The forward pass and these gradients are the same, bit for bit; those of other parameters are
    not computed. Where a part of the graph is hidden in a function that makes a backward pass of
    its own (reentrant gradient checkpointing), all are computed. So they are for a loss whose
    `backward` is called by itself.

    Args:
        accelerator: Of the Trainer.
        leaves: Returns the leaves, once the forward pass has made the graph; None for all.

    Yields:
        Nothing. Cost: a walk through the graph, about a microsecond a node.
    """
    own = vars(accelerator).get("backward")
    whole = accelerator.backward

    def backward(loss: Tensor, **kwargs: Any) -> None:
        needed = leaves()
        limits = {"inputs": needed} if needed and is_reached(loss, needed) else {}
        whole(loss, **kwargs, **limits)

    accelerator.backward = backward
    try:
        yield
    finally:
        del accelerator.backward
        if own is not None:
            accelerator.backward = own


def is_reached(loss: Tensor, leaves: Sequence[Tensor]) -> bool:
    """Return whether a backward pass with `inputs=leaves` gives each of them its whole gradient.

    Args:
        loss: Of any shape.
        leaves: A leaf that does not occur has no gradient, unless a function in Python may hide it.
    """
    found: set[Any] = set()
    functions: set[str] = set()
    waiting = [loss.grad_fn]
    missing = {id(leaf) for leaf in leaves}
    while waiting:
        node = waiting.pop()
        if node is None or node in found:
            continue
        found.add(node)
        missing.discard(id(getattr(node, "variable", None)))  # of the nodes at the graph's ends
        if isinstance(node, BackwardCFunction):
            functions.add(type(node).__name__)
        waiting += [following for following, _ in node.next_functions]
    return not (functions and missing) and "CheckpointFunctionBackward" not in functions
