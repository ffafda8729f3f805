"""Training steps and logs of the user's own."""

from pathlib import Path
from typing import Any

import pytest
from cases import build, make_trainer
from stateful import plain_step
from torch import Tensor, nn
from transformers import Trainer

from hf_sam import SAMTrainer
from hf_sam.config import ASCENT_SCOPES


class OwnStep(Trainer):
    training_step = plain_step


class Below(SAMTrainer):
    training_step = plain_step


class Beside(OwnStep, SAMTrainer):
    pass


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("how", ["below", "beside", "on the trainer"])
def test_a_training_step_without_sam_is_told(how: str, steps: int, tmp_path: Path) -> None:
    kind = {"below": Below, "beside": Beside, "on the trainer": SAMTrainer}[how]
    trainer = make_trainer(build("mlp"), tmp_path, trainer=kind, max_steps=steps)
    if how == "on the trainer":
        trainer.training_step = plain_step.__get__(trainer)
    with pytest.raises(ValueError, match="got a `training_step` of .* mix SAMMixin in before"):
        trainer.train()
    assert trainer.state.global_step == 1
    trainer.args.rho = 0.0
    trainer.train()


def test_a_training_step_that_sam_is_mixed_into_is_called_twice(tmp_path: Path) -> None:
    class Wraps(SAMTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().training_step(*args, **kwargs)

    trainer = make_trainer(build("mlp"), tmp_path, trainer=Wraps, max_steps=2, logging_steps=1)
    trainer.train()
    assert "sharpness" in trainer.state.log_history[0]


@pytest.mark.parametrize("scope", ASCENT_SCOPES)
@pytest.mark.parametrize("settings", [{}, {"ascent_fraction": 0.5}, {"method": "msam"}], ids=str)
def test_logs_and_parts_of_the_loss_come_once(
    settings: dict[str, Any], scope: str, tmp_path: Path
) -> None:
    """As with rho 0, by a `log` of one's own too; the parts are sentence-transformers'."""
    own: list[dict[str, float]] = []

    class Logs(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            loss = model(**inputs)["loss"]
            parts = self.accum_loss_components["train"]
            parts["whole"] = parts.get("whole", 0) + 1
            self.log({"mine": len(inputs["x"])})
            return loss

        def log(self, logs: dict[str, float], *args: Any) -> None:
            own.append(logs)
            super().log(logs, *args)

    momentum = {"optim_args": "momentum=0.9"}
    scoped = {} if "method" in settings else {"ascent_scope": scope}
    trainer = make_trainer(
        build("mlp"), tmp_path, trainer=Logs, max_steps=3, gradient_accumulation_steps=2,
        **settings, **momentum, **scoped,
    )  # fmt: skip
    trainer.accum_loss_components = {"train": {}}
    trainer.train()
    found = [entry["mine"] for entry in trainer.state.log_history if "mine" in entry]
    assert found == [8] * 6
    assert [entry["mine"] for entry in own if "mine" in entry] == found
    assert trainer.accum_loss_components == {"train": {"whole": 6}}
