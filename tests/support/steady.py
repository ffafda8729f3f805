"""What does not change while tests run, and would be looked up anew in each of many trainings.

accelerate reads a package's metadata whenever it unwraps a model, several times a training, and a
training begins with a garbage collection, which would go through all that was imported.
"""

import functools
import gc
import importlib.metadata
import sys

importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)
kept = 0  # modules


def keep_imports() -> None:
    """Spare the garbage collection all that was imported since the last call."""
    global kept
    if len(sys.modules) > kept + 20:
        gc.collect()
        gc.freeze()
        kept = len(sys.modules)


def import_all() -> None:
    """Import what a training would, for the processes that are forked from this one."""
    import matplotlib.figure  # noqa: F401
    from accelerate.utils import extract_model_from_parallel
    from torch import nn
    from transformers import TimmWrapperForImageClassification  # noqa: F401

    extract_model_from_parallel(nn.Identity())  # imports deepspeed, where it is installed
    keep_imports()
