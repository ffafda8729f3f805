"""Averages of weights by their definition, and trainings whose weights are remembered."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import build, examples, make_trainer
from torch import Tensor
from transformers import TrainerCallback

from hf_sam import SAMTrainer

KINDS = ["ema:0.9", "swa:0.25"]
EVALUATED = {"eval_strategy": "steps", "eval_steps": 5}
EACH = pytest.mark.parametrize("kind", KINDS)


class Steps(TrainerCallback):
    """Remembers weights and statistics after each step, and at each evaluation."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []
        self.evaluated: list[dict[str, Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.after.append(copy.deepcopy(model.state_dict()))

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.evaluated.append(copy.deepcopy(model.state_dict()))


def averaged(states: list[dict[str, Tensor]], kind: str, total: int) -> dict[str, Tensor]:
    """By the definition, of the weights after each step; the last ones' counters."""
    name, _, number = kind.partition(":")
    if name == "swa":
        states = states[math.floor(float(number) * total) :]
    shares = [1.0 / len(states)] * len(states)
    if name == "ema":
        decay, count = float(number), len(states)
        shares = [(1 - decay) * decay ** (count - 1 - t) for t in range(count)]
        shares[0] = decay ** (count - 1)
    means = {
        key: sum(share * state[key] for share, state in zip(shares, states, strict=True))
        for key, x in states[-1].items()
        if x.is_floating_point()
    }
    return {**states[-1], **means}


def trained(tmp_path: Path, model: str = "dropout_and_batch_norm", **settings: Any) -> SAMTrainer:
    kind = {"optim_args": "momentum=0.9", "trainer_kwargs": {"eval_dataset": examples(count=8)}}
    trainer = make_trainer(build(model), tmp_path, **{**kind, **settings})
    trainer.seen = Steps()
    trainer.add_callback(trainer.seen)
    trainer.train()
    return trainer


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, x in found.items():
        torch.testing.assert_close(x, expected[name], rtol=0, atol=1e-12)  # order of sums
