"""Twenty steps of SAMTrainer beside the paper's equations, and how far apart they end."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracles
import torch
from cases import Draws, Recorder, make_trainer
from torch import Tensor

STEPS, LR = 20, 0.1
# The oracle's rounding and the Trainer's differ in order only.
FLOAT64 = 1e-10
FLOAT32 = 1e-5  # 20 steps of float32 arithmetic, relative to the largest weight


def oracle_weights(
    model: torch.nn.Module,
    windows: list[list[Any]],
    *,
    optimizer: str,
    gradient: oracles.Gradient | None = None,
    max_grad_norm: float = 0.0,
    draws: list[Tensor] | None = None,
    rho: float = 0.05,
    share: Callable[[int], float] = lambda step: 1.0,
    **sam: Any,
) -> Tensor:
    """Train the flat vector of `model`'s weights on the recorded windows, rho times share(step)."""
    gradient = gradient or oracles.flat_gradient(model)
    w, state = oracles.flat_weights(model), {}
    for step, window in enumerate(windows):
        if draws is not None:
            torch.set_rng_state(draws[step])
        g = oracles.sam_gradient(gradient, w, window, rho=rho * share(step), model=model, **sam)
        if max_grad_norm:
            g = oracles.clip(g, max_grad_norm)
        if optimizer == "adamw_torch":
            w = oracles.adamw(w, g, state, lr=0.01)
        else:
            w = oracles.sgd(w, g, state, lr=LR, momentum=0.9 if "momentum" in optimizer else 0.0)
    return w


def errors(
    model: torch.nn.Module,
    tmp_path: Path,
    *,
    optimizer: str = "sgd",
    dtype: torch.dtype = torch.float64,
    accumulation: int = 1,
    gradient: oracles.Gradient | None = None,
    sam: dict[str, Any] | None = None,
    expected: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[float, float]:
    """Train with SAMTrainer and by the oracle; largest and mean error over the largest weight.

    `sam` is what the user sets, `expected` what it should mean to the oracle.
    """
    sam = {"rho": 0.05} if sam is None else sam
    reference = copy.deepcopy(model).double().train()
    recorder, draws = Recorder(), Draws()
    optim = {"optim": optimizer, "learning_rate": 0.01 if optimizer == "adamw_torch" else LR}
    if "momentum" in optimizer:
        optim = {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": LR}
    trainer = make_trainer(
        model,
        tmp_path,
        dtype=dtype,
        recorder=recorder,
        gradient_accumulation_steps=accumulation,
        **{**optim, **sam, **settings},
    )
    trainer.add_callback(draws)
    trainer.train()
    batches = [
        {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        for batch in recorder.batches
    ]
    windows = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
    norm = sam.pop("perturbation_norm", 2.0)
    adaptive = oracles.weight_mask(reference) if sam.pop("adaptive", False) else None
    weights = oracle_weights(
        reference,
        windows[:STEPS],
        optimizer=optimizer,
        gradient=gradient,
        max_grad_norm=settings.get("max_grad_norm", 0.0),
        draws=draws.states,
        p=norm,
        adaptive=adaptive,
        **{name: value for name, value in sam.items() if name in ("rho", "eta")},
        **(expected or {}),
    )
    difference = (oracles.flat_weights(model) - weights).abs() / weights.abs().max()
    return float(difference.max()), float(difference.mean())
