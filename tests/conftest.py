"""No test reaches the network, and none looks up anew what no test changes."""

import gc

import offline  # noqa: F401  # before anything imports huggingface_hub
import steady


def pytest_runtest_setup() -> None:
    """Keep what was imported, by earlier tests too, out of the garbage collections."""
    steady.keep_imports()


def pytest_unconfigure() -> None:
    """Let the interpreter end as it would."""
    gc.unfreeze()
