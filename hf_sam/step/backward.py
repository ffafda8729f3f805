"""A backward pass that goes no further than the gradients that are used."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from ..backends.backward import Backward, backward_by, graph_of, leaf_of

# Functions written in Python that hide nothing: of DDP, of FSDP2, and of torch.compile.
OPEN = ("_DDPSinkBackward", "RegisterPostBackwardFunctionBackward", "CompiledFunctionBackward")


def backward_to(
    accelerator: Accelerator, leaves: Callable[[], Sequence[Tensor] | None]
) -> AbstractContextManager[None]:
    """Context manager in which `accelerator.backward` computes the gradients of some leaves alone.

    The forward pass and these gradients are the same, bit for bit; those of other parameters are
    not computed. Where a part of the graph is hidden in a function or hook that makes a backward
    pass of its own (reentrant gradient checkpointing, cached losses), all are computed. So they are
    for a loss whose `backward` is called by itself, and where the pass does not use one of the
    leaves, which may be hidden.

    Args:
        accelerator: Of the Trainer.
        leaves: Returns the leaves, once the forward pass has made the graph; None for all.

    Returns:
        The context manager. Cost: a walk through the graph.
    """

    def call(whole: Backward, loss: Tensor, kwargs: Mapping[str, Any]) -> None:
        needed = None if "inputs" in kwargs or not _takes_inputs(whole) else leaves()
        limits = {"inputs": needed} if needed and is_all_seen(loss, needed) else {}
        whole(loss, **kwargs, **limits)

    return backward_by(accelerator, call)


def _takes_inputs(backward: Backward) -> bool:
    kinds = {parameter.kind for parameter in inspect.signature(backward).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def is_all_seen(loss: Tensor, leaves: Sequence[Tensor]) -> bool:
    """Return whether the graph of a loss, of any shape, shows every way to the leaves.

    A function written in Python, or the hook of another leaf, may make a backward pass of its own,
    as reentrant checkpoints and cached losses do, and reach parameters that are not in the graph,
    or not only there.
    """
    left = set(map(id, leaves))
    if loss._backward_hooks:
        return False
    for node in graph_of(loss):
        if isinstance(node, BackwardCFunction) and type(node).__name__ not in OPEN:
            return False
        leaf = leaf_of(node)
        if leaf is not None and leaf._backward_hooks and not isinstance(leaf, nn.Parameter):
            return False
        left.discard(id(leaf))
    return not left
