"""What ends a training under ZeRO in the middle: an exception, an overflow, SIGKILL."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from cases import build
from deepspeed_cpu import config
from deepspeed_runs import EVALUATED, SAVING, left, trainer_of, under_deepspeed
from overflows import Overflows
from torch import Tensor, nn
from transformers import TrainerCallback

FP16 = {"enabled": True, "initial_scale_power": 8, "hysteresis": 1}


class Fails(nn.Module):
    """Raises in the given training pass: in forward, or in the backward of its first layer."""

    def __init__(self, call: int, where: str, error: type[BaseException]) -> None:
        super().__init__()
        self.model, self.call, self.where = build("mlp", torch.float32), call, where
        self.error, self.calls = error, 0

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += self.training
        fails = self.training and self.calls == self.call
        out = self.model(x.requires_grad_(fails and self.where == "backward"), labels)
        if fails and self.where == "backward":
            x.register_hook(self.strike)
        elif fails:
            self.strike()
        return out

    def strike(self, *_: Any) -> None:
        raise self.error("as asked")


def left_by_exception(
    folder: Path, engine: dict[str, Any], call: int, where: str, error: type[BaseException]
) -> list[str]:
    """Evaluate, fail in a pass of the third step, evaluate; name what is not as before the step.

    The calls are two clean and two perturbed passes a step. Then train anew: the trainer must do
    what one does that nothing has happened to.
    """
    trainer = trainer_of(folder, Fails(call, where, error), engine, max_steps=4, **EVALUATED)
    before: list[Any] = []

    class Remember(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            before.append((left(trainer), trainer.evaluate()["eval_loss"]))
            trainer.model_wrapped.train()

    trainer.add_callback(Remember())
    try:
        trainer.train()
    except (RuntimeError, KeyboardInterrupt) as raised:
        assert str(raised) == "as asked", raised
    now = (left(trainer), trainer.evaluate()["eval_loss"])
    assert len(before) == 3, "it did not fail in the third step"
    parts = zip(("weights", "evaluation"), now, before[-1], strict=True)
    return [name for name, value, expected in parts if value != expected]


def left_by_overflow(folder: Path, stage: int, call: int) -> list[str]:
    """Name what is wrong after one step whose clean (1) or perturbed pass (2) overflows."""
    engine = config(stage, fp16=FP16)
    settings = {"max_steps": 1, "gradient_accumulation_steps": 1, "fp16": True}
    settings["allow_rounded_perturbation"] = True
    found = []
    for calls in ((call,), ()):
        trainer = trainer_of(folder, Overflows(calls, "mlp"), engine, learning_rate=0.0, **settings)
        trainer.train()
        zero = trainer.deepspeed.optimizer
        found.append((left(trainer), float(zero.loss_scale), trainer.deepspeed.skipped_steps))
    (after, scale, skipped), (expected, scale_before, _) = found
    wrong = {
        "weights": after != expected,
        "scale": scale != scale_before / 2,
        "skipped": skipped != 1,
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


def train_until_killed(folder: Path, engine: dict[str, Any], forward: int) -> None:
    """End the process in the given forward pass, as a failing machine does."""
    model, passes = build("dropout", torch.float32), count(1)

    def strike(*_: Any) -> None:
        if next(passes) == forward:
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(strike)
    trainer_of(folder, model, engine, **SAVING).train()


def killed_and_resumed_differs(folder: Path, engine: dict[str, Any]) -> list[str]:
    """Go on from the checkpoint in the middle; compare with a training that was not killed."""
    found = []
    for run, start in ((folder, str(folder / "checkpoint-4")), (folder / "whole", None)):
        model = build("dropout", torch.float32, seed=9 if start else 0)
        trainer = trainer_of(run, model, engine, **SAVING)
        trainer.train(resume_from_checkpoint=start)
        found.append(left(trainer))
    return [name for name, value in found[0].items() if value != found[1][name]]


def killed(folder: Path, stage: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The second rank dies in a clean pass of the sixth step, and torchrun ends the first."""
    forward = 22 if os.environ["RANK"] == "1" else -1
    engine = config(int(stage))
    check = partial(train_until_killed, folder / "run", engine, forward)
    yield "killed", partial(under_deepspeed, check)


def revived(folder: Path, run: str, stage: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Go on with what `killed` has left."""
    check = partial(killed_and_resumed_differs, Path(run), config(int(stage)))
    yield "resumed", partial(under_deepspeed, check)
