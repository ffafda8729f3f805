"""A backward pass that goes no further than the gradients that are used."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.autograd.function import BackwardCFunction

# Functions written in Python that hide nothing: of DDP, of FSDP2, and of torch.compile.
OPEN = ("_DDPSinkBackward", "RegisterPostBackwardFunctionBackward", "CompiledFunctionBackward")


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
        needed = None if "inputs" in kwargs or not _takes_inputs(whole) else leaves()
        limits = {"inputs": needed} if needed and is_all_seen(loss) else {}
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


def is_all_seen(loss: Tensor) -> bool:
    """Return whether the graph of a loss, of any shape, shows every way to a parameter.

    A function written in Python may make a backward pass of its own, as reentrant checkpoints do,
    and reach parameters by it that are not in the graph, or not only there.
    """
    found, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in found:
            continue
        if isinstance(node, BackwardCFunction) and type(node).__name__ not in OPEN:
            return False
        found.add(node)
        waiting += [following for following, _ in node.next_functions]
    return True
