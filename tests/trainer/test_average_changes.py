"""Averages of weights where a training does not go straight: what joins late, ends, resumes."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from averages import EACH, EVALUATED, KINDS, Steps, assert_close, averaged, trained
from cases import CLASSES, FEATURES, Classifier, build, examples, make_trainer
from torch import nn
from transformers import Trainer, TrainerCallback

from hf_sam import SAMMixin, SAMTrainer
from hf_sam.average_rule import rule_of
from hf_sam.averaging import AverageMixin
from hf_sam.backends import engine_of
from hf_sam.step.checks import leave_evaluation
from hf_sam.step.weight_average import AVERAGE_FILE, WeightAverage


@EACH
@pytest.mark.parametrize("event", ["on_step_begin", "on_evaluate"])
def test_a_group_added_later_is_averaged(kind: str, event: str, tmp_path: Path) -> None:
    """From the first step that trains it."""
    model, seen = build("mlp"), Steps()
    model.body[0].requires_grad_(False)

    def thaw(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 7 and len(trainer.optimizer.param_groups) == 2:
            model.body[0].requires_grad_(True)
            trainer.optimizer.add_param_group({"params": list(model.body[0].parameters())})
            trainer.lr_scheduler.base_lrs.append(0.1)
            trainer.lr_scheduler.lr_lambdas.append(lambda step: 1.0)

    data = {"eval_dataset": examples(count=8)}
    evaluated = {"eval_strategy": "steps", "eval_steps": 7, "trainer_kwargs": data}
    trainer = make_trainer(model, tmp_path, weight_average=kind, **evaluated)
    trainer.add_callback(type("Thaw", (TrainerCallback,), {event: thaw})())
    trainer.add_callback(seen)
    trainer.train()
    name, _, number = kind.partition(":")
    begin = 7 if name == "ema" else max(7, math.floor(20 * float(number)))
    late = averaged(seen.after[begin:], f"{name}:0" if name == "swa" else kind, 20)
    for key, x in averaged(seen.after, kind, 20).items():
        expected = late[key] if key.startswith("body.0.") else x
        torch.testing.assert_close(trainer.model.state_dict()[key], expected, rtol=0, atol=1e-12)


class Merging(nn.Module):
    """A layer with an adapter that it merges into its frozen weight for evaluations."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, FEATURES).double(), requires_grad=False)
        self.a = nn.Parameter(torch.randn(2, FEATURES).double())
        self.b = nn.Parameter(torch.randn(CLASSES, 2).double())
        self.is_merged = False

    def train(self, mode: bool = True) -> "Merging":
        super().train(mode)
        if mode == self.is_merged:
            self.weight.data += (-1 if mode else 1) * self.b.data @ self.a.data
            self.is_merged = not mode
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x @ self.weight.T
        return out if self.is_merged else out + x @ self.a.T @ self.b.T


@pytest.mark.parametrize("on_start", [False, True])
@pytest.mark.parametrize("average", [None, *KINDS])
@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_merged_adapters_leave_the_weight_as_it_was(
    rho: float, average: str | None, on_start: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Classifier(Merging())
    before = model.body[0].weight.clone()
    settings = {**EVALUATED, "eval_on_start": on_start, "weight_average": average, "rho": rho}
    data = {"eval_dataset": examples(count=8)}
    make_trainer(model, tmp_path, trainer_kwargs=data, **settings).train()
    torch.testing.assert_close(model.train().body[0].weight, before, rtol=0, atol=1e-12)


def test_what_a_wrapper_holds_leaves_evaluation_too() -> None:
    """The Trainer evaluates the model itself, and the wrapper, as DDP's, stays in training mode."""
    model = build("mlp").eval()
    wrapper = nn.Sequential(model)
    wrapper.training = True
    leave_evaluation(wrapper, None)
    assert all(module.training for module in wrapper.modules())


@EACH
def test_statistics_of_a_head_outside_the_model_are_averaged(kind: str, tmp_path: Path) -> None:
    class Headed(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            logits = self.head(model.body(inputs["x"]))
            return nn.functional.cross_entropy(logits, inputs["labels"])

    model = build("mlp")
    head = nn.Sequential(nn.BatchNorm1d(CLASSES), nn.Linear(CLASSES, CLASSES)).double()
    both = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    given = {"optimizers": (both, None)}
    trainer = make_trainer(
        model, tmp_path, trainer=Headed, weight_average=kind, trainer_kwargs=given
    )
    trainer.head, states = head, []

    class Remember(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            states.append(copy.deepcopy(head.state_dict()))

    trainer.add_callback(Remember())
    trainer.train()
    assert_close(head.state_dict(), averaged(states, kind, len(states)))


def test_who_joined_late_is_known_to_a_resumed_run(tmp_path: Path) -> None:
    rule, saved = rule_of("swa:0"), []
    for at in (None, 2):
        layers = nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(2)])
        optimizer = torch.optim.SGD(layers[:1].parameters())
        average = WeightAverage(rule, layers, optimizer, engine_of(layers), 4)
        for step in range(4):
            with torch.no_grad():
                for param in layers.parameters():
                    param.fill_(float(step**2))
            if step == 1:
                optimizer.add_param_group({"params": layers[1].parameters()})
            average.add()
            if step == at:
                average.save(str(tmp_path), writes=True)
                average = WeightAverage(rule, layers, optimizer, engine_of(layers), 4)
                average.load(str(tmp_path))
        saved.append({name: float(x) for name, x in average.tensors.items()})
    assert saved[0] == saved[1] == {"0.weight": 14 / 4, "1.weight": pytest.approx(14 / 3)}


def test_an_average_of_an_earlier_run_is_not_left_beside_a_checkpoint(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 10}
    for kind in ("ema:0.9", None):
        make_trainer(build("mlp"), tmp_path, weight_average=kind, **saving).train()
        assert (tmp_path / "checkpoint-10" / AVERAGE_FILE).exists() == (kind is not None)


def test_a_best_checkpoint_from_before_the_average_is_what_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"learning_rate": 3.0, "load_best_model_at_end": True, "rho": 0.0}
    saving = {"save_strategy": "steps", "save_steps": 5, "weight_average": "swa:0.75"}
    trainer = trained(tmp_path, **settings, **saving, **EVALUATED)
    best = int(trainer.state.best_model_checkpoint.rpartition("-")[2])
    assert best <= 15
    assert_close(trainer.model.state_dict(), trainer.seen.after[best - 1])
    assert "has no average that counts: the model has its weights" in caplog.text
    assert "train for longer" not in caplog.text


def test_an_interrupted_training_says_what_the_model_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Interrupts(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                raise KeyboardInterrupt

    trainer = make_trainer(build("mlp"), tmp_path, weight_average="ema:0.9")
    trainer.add_callback(Interrupts())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert "the model has the last weights, and not their average" in caplog.text


@pytest.mark.parametrize(("start", "begin"), [("0.29", 29), ("0.57", 57), ("0.75", 75), ("0", 0)])
def test_a_share_of_the_steps_is_counted_as_it_is_written(start: str, begin: int) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    rule = rule_of(f"swa:{start}")
    assert WeightAverage(rule, model, optimizer, engine_of(model), 100).begin == begin


@pytest.mark.parametrize("mixin", [SAMMixin, AverageMixin])
def test_a_mixin_after_the_trainer_is_refused(mixin: type) -> None:
    with pytest.raises(TypeError, match=rf"write `class Mixed\({mixin.__name__}, ...\)`"):

        class Mixed(Trainer, mixin):
            pass
