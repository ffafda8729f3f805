"""What is done to a loss before its backward pass: what its graph reaches, and calls put before."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.autograd.graph import Node

Backward = Callable[..., None]  # of an accelerator: a loss, and further arguments


@contextmanager
def backward_by(
    accelerator: Accelerator, call: Callable[[Backward, Tensor, Mapping[str, Any]], None]
) -> Iterator[None]:
    """Context manager in which `accelerator.backward` is made by a function.

    Args:
        accelerator: Of the Trainer.
        call: Takes the method as it was, the loss and the further arguments.

    Yields:
        Nothing. A method that the block has put there stays.
    """
    own = vars(accelerator).get("backward")
    before = accelerator.backward

    def backward(loss: Tensor, **kwargs: Any) -> None:
        call(before, loss, kwargs)

    accelerator.backward = backward
    try:
        yield
    finally:
        if vars(accelerator).get("backward") is backward:
            del accelerator.backward
            if own is not None:
                accelerator.backward = own


def graph_of(loss: Tensor) -> Iterator[Node]:
    """Yield the nodes of a loss's graph, each once. Cost: about a microsecond a node."""
    found: set[Node] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in found:
            continue
        found.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions]


def leaf_of(node: Node) -> Tensor | None:
    """Return the leaf whose gradient a node accumulates, None for other nodes."""
    return getattr(node, "variable", None)
