"""A backward pass that goes no further than the gradients that are used."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

# Functions written in Python that hide nothing: of DDP, of FSDP2, and of torch.compile.
OPEN = ("_DDPSinkBackward", "RegisterPostBackwardFunctionBackward", "CompiledFunctionBackward")


@contextmanager
def backward_to(
    accelerator: Accelerator, leaves: Callable[[], Sequence[Tensor] | None]
) -> Iterator[None]:
    """Context manager in which `accelerator.backward` computes the gradients of some leaves alone.

    The forward pass and these gradients are the same, bit for bit; those of other parameters are
    not computed. Where a part of the graph is hidden in a function or hook that makes a backward
    pass of its own (reentrant gradient checkpointing, cached losses), all are computed. So they are
    for a loss whose `backward` is called by itself, and where the pass does not use one of the
    leaves, which may be hidden.

    Args:
        accelerator: Of the Trainer.
        leaves: Returns the leaves, once the forward pass has made the graph; None for all.

    Yields:
        Nothing. Cost: a walk through the graph, about a microsecond a node.
    """
    own = vars(accelerator).get("backward")
    whole = accelerator.backward

    def backward(loss: Tensor, **kwargs: Any) -> None:
        needed = None if "inputs" in kwargs or not _takes_inputs(whole) else leaves()
        limits = {"inputs": needed} if needed and is_all_seen(loss, needed) else {}
        whole(loss, **kwargs, **limits)

    accelerator.backward = backward
    try:
        yield
    finally:
        if vars(accelerator).get("backward") is backward:  # and not what the block has put there
            del accelerator.backward
            if own is not None:
                accelerator.backward = own


def _takes_inputs(backward: Callable[..., Any]) -> bool:
    kinds = {parameter.kind for parameter in inspect.signature(backward).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def is_all_seen(loss: Tensor, leaves: Sequence[Tensor]) -> bool:
    """Return whether the graph of a loss, of any shape, shows every way to the leaves.

    A function written in Python, or the hook of another leaf, may make a backward pass of its own,
    as reentrant checkpoints and cached losses do, and reach parameters that are not in the graph,
    or not only there.
    """
    left, found, waiting = set(map(id, leaves)), set(), [loss.grad_fn]
    if loss._backward_hooks:
        return False
    while waiting:
        node = waiting.pop()
        if node is None or node in found:
            continue
        if isinstance(node, BackwardCFunction) and type(node).__name__ not in OPEN:
            return False
        found.add(node)
        waiting += [following for following, _ in node.next_functions]
        leaf = getattr(node, "variable", None)  # of the node that accumulates its gradient
        if leaf is not None and leaf._backward_hooks and not isinstance(leaf, nn.Parameter):
            return False
        left.discard(id(leaf))
    return not left
