"""Every method in one table: what the user sets, its equations, its passes."""

import functools
import random
from collections.abc import Callable
from typing import Any

import oracles
import pytest
from torch import Tensor
from trajectory import LR, STEPS

from hf_sam.ascent.methods import METHODS

RHO, SEED = 0.2, 42


def heads(step: int) -> bool:
    return random.Random(f"{SEED}-{step}").random() < 0.4


def rst(at: oracles.At, w: Tensor, state: dict[str, Any], *, rho: float) -> Tensor:
    """2203.09962: SAM's gradient or the plain one, by a coin."""
    step = state["t"] = state.get("t", -1) + 1
    return oracles.sam(at, w, state, rho=rho) if heads(step) else at(w)


# What the user sets; the equations; passes over the batch in 20 steps, beyond the first.
METHOD_TABLE: dict[str, tuple[dict[str, Any], Callable[..., Tensor], int]] = {
    "sam": ({}, oracles.sam, 20),
    "looksam": (
        {"method_args": "alpha=0.3", "ascent_interval": 3},
        functools.partial(oracles.looksam, alpha=0.3, k=3),
        7,
    ),
    "msam": ({}, oracles.msam, 0),
    "s2sam": ({}, oracles.s2sam, 0),
    "rst": ({"method_args": "p=0.4"}, rst, sum(heads(t) for t in range(STEPS))),
    "friendly_sam": (
        {"method_args": "sigma=0.7, decay=0.8"},
        functools.partial(oracles.friendly_sam, sigma=0.7, decay=0.8),
        20,
    ),
    "vasso": (
        {"method_args": "theta=0.4"},
        functools.partial(oracles.vasso, theta=0.4),
        20,
    ),
    "gsam": ({"method_args": "alpha=0.3"}, functools.partial(oracles.gsam, alpha=0.3), 20),
    "wsam": ({"method_args": "gamma=0.8"}, functools.partial(oracles.wsam, gamma=0.8), 20),
    "le_sam": ({"method_args": "sigma=0.1"}, functools.partial(oracles.le_sam, sigma=0.1), 20),
    "ema": ({"weight_average": "ema:0.8"}, oracles.sam, 20),
    "swa": ({"weight_average": "swa:0.5"}, oracles.sam, 20),
}
# What a model is after a training, of the weights after each step.
AVERAGES = {
    "ema": functools.partial(oracles.ema, decay=0.8),
    "swa": functools.partial(oracles.swa, start=0.5),
}
assert set(METHOD_TABLE) == {*METHODS, *AVERAGES}
TABLE = pytest.mark.parametrize("method", METHOD_TABLE)


def settings_of(method: str) -> dict[str, Any]:
    name = "sam" if method in AVERAGES else method
    return {"method": name, "rho": RHO, "seed": SEED, **METHOD_TABLE[method][0]}


def momentum(optimizer: str) -> dict[str, Any]:
    if optimizer == "adamw":
        return {"optim": "adamw_torch", "learning_rate": 0.01}
    return {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": LR}
