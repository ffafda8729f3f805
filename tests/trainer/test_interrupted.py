"""Whatever ends a training, going on from its checkpoint gives the training that nothing ended."""

import sys
from pathlib import Path
from typing import Any

import patience
import pytest
import scenarios
from cases import build, make_trainer
from observers import files, fingerprint
from places import SUPPORT
from scenarios import PLAIN, saving
from transformers import TrainerCallback

from hf_sam.config import ASCENT_SCOPES

SCOPES = pytest.mark.parametrize("scope", ASCENT_SCOPES)


@SCOPES
@pytest.mark.parametrize("at", [4, 6], ids=["in an epoch", "between epochs"])
def test_resumed_is_bit_for_bit(at: int, scope: str, tmp_path: Path) -> None:
    assert scenarios.resumed_differs(scope, tmp_path / "run", at=at) == []


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    script = str(SUPPORT / "interrupted.py")
    patience.run([sys.executable, script, folder, "7", *ASCENT_SCOPES])
    return folder


@SCOPES
def test_killed_at_a_random_pass_and_resumed_is_bit_for_bit(scope: str, killed: Path) -> None:
    assert scenarios.killed_and_resumed_differs(scope, killed / scope) == []


class Switch(TrainerCallback):
    """Trains with one rho up to the fourth step, and with another from then on."""

    def __init__(self, first: float, second: float) -> None:
        self.rho = first, second

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.rho = self.rho[state.global_step >= 4]


@SCOPES
@pytest.mark.parametrize("first", ["plain", "sam"])
def test_checkpoints_are_the_plain_trainers_both_ways(
    first: str, scope: str, tmp_path: Path
) -> None:
    """Four steps of one Trainer, resumed by the other, are eight with rho switched in between."""
    common = {k: v for k, v in saving("").items() if k != "ascent_scope"}
    kinds = {"plain": PLAIN, "sam": {"ascent_scope": scope, "rho": 0.5}}
    second = {"plain": "sam", "sam": "plain"}[first]
    make_trainer(build("batch_norm"), tmp_path / "a", **common, **kinds[first]).train()
    resumed = make_trainer(build("batch_norm", seed=9), tmp_path / "b", **common, **kinds[second])
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    switched = make_trainer(build("batch_norm"), tmp_path / "c", **common, **kinds["sam"])
    switched.add_callback(Switch(*(0.5 if kind == "sam" else 0.0 for kind in (first, second))))
    switched.train()
    assert fingerprint(resumed.model) == fingerprint(switched.model)
    last = [files(tmp_path / name / "checkpoint-8") for name in ("b", "c")]
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"):
        assert last[0][name] == last[1][name]
