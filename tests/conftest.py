"""No test reaches the network, and garbage of all imports is not collected at each training."""

import gc

import offline  # noqa: F401  # before anything imports huggingface_hub


def pytest_collection_finish() -> None:
    """Spare the garbage collection that opens each training the objects of all imports."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter end as it would."""
    gc.unfreeze()
