"""What does not change while tests run, and would be looked up anew in each of many trainings.

accelerate reads a package's metadata whenever it unwraps a model, several times a training, and a
training begins with a garbage collection, which would go through all that was imported.
"""

import functools
import gc
import importlib.metadata

importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)


def keep_imports() -> None:
    """Spare the garbage collection the objects of all that has been imported."""
    gc.freeze()
