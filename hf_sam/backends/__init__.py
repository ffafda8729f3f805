"""What the engine that trains a model allows SAM to do, and what it needs done: one file an engine.

`engine.py` has the questions that SAM asks of every engine; a new engine answers them in a file of
its own and is added to `ENGINES` here. `rules.py` refuses the engines that nobody has answered for.
"""

from torch import nn

from .ddp import Replicated
from .deepspeed import DeepSpeed
from .engine import Engine, Weights
from .fsdp2 import Sharded

ENGINES: tuple[type[Engine], ...] = (
    DeepSpeed,
    Sharded,
    Replicated,
)  # the first that knows a model is its engine


def engine_of(model: nn.Module) -> Engine:
    """Return the engine that has prepared a model."""
    return next(engine for kind in ENGINES if (engine := kind.of(model)) is not None)


__all__ = ["ENGINES", "Engine", "Weights", "engine_of"]
