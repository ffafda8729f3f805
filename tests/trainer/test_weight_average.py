"""Averages of weights: their equations, where they are seen, what is saved, resume."""

from pathlib import Path
from typing import Any
from unittest import mock

import oracles
import pytest
import torch
from accelerate import Accelerator
from averages import EACH, EVALUATED, Steps, assert_close, averaged, trained
from cases import build, examples, make_trainer
from observers import fingerprint
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.step.weight_average import AVERAGE_FILE, WeightAverage

SETTINGS: list[dict[str, Any]] = [{"rho": 0.0}, {"rho": 0.2}, {"rho": 0.2, "method": "vasso"}]


@EACH
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_average_is_what_is_evaluated_saved_and_left(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    trainer = trained(tmp_path, weight_average=kind, **EVALUATED, **settings)
    states = trainer.seen.after
    assert_close(trainer.model.state_dict(), averaged(states, kind, 20))
    for number, seen in enumerate(trainer.seen.evaluated, start=1):
        due = [states[: 5 * number], kind, 20]
        is_begun = kind.startswith("ema") or number > 1
        assert_close(seen, averaged(*due) if is_begun else states[4])
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[-1], rel=1e-12)
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert_close(saved, trainer.model.state_dict())


@EACH
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_training_itself_is_unchanged(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with_average = trained(tmp_path, weight_average=kind, **EVALUATED, **settings)
    without = trained(tmp_path, **EVALUATED, **settings)
    for state, other in zip(with_average.seen.after, without.seen.after, strict=True):
        assert all(torch.equal(x, other[name]) for name, x in state.items())
    assert fingerprint(with_average.model) != fingerprint(without.model)


@EACH
@pytest.mark.parametrize("at", [3, 10])
def test_resumed_is_bit_for_bit(kind: str, at: int, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": at, "weight_average": kind, "rho": 0.2}
    straight = trained(tmp_path, **saving, **EVALUATED)
    again = make_trainer(
        build("dropout_and_batch_norm", seed=9),
        tmp_path,
        optim_args="momentum=0.9",
        trainer_kwargs={"eval_dataset": examples(count=8)},
        **saving,
        **EVALUATED,
    )
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert fingerprint(again.model) == fingerprint(straight.model)
    losses = [
        [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        for trainer in (straight, again)
    ]
    assert losses[0] == losses[1]


@EACH
def test_checkpoints_have_the_weights_and_the_average(kind: str, tmp_path: Path) -> None:
    trainer = trained(tmp_path, save_strategy="steps", save_steps=10, weight_average=kind)
    states = trainer.seen.after
    checkpoint = tmp_path / "checkpoint-10"
    kept = load_file(checkpoint / AVERAGE_FILE)
    expected = averaged(states[:10], kind, 20)
    assert kept.keys() == {name for name, x in expected.items() if x.is_floating_point()}
    assert_close(kept, {name: expected[name] for name in kept})
    weights = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(x, states[9][name]) for name, x in weights.items())


def test_the_best_checkpoint_is_that_of_the_average(tmp_path: Path) -> None:
    """The loss of a run whose learning rate is absurd grows: the first evaluation is the best."""
    settings = {"learning_rate": 3.0, "load_best_model_at_end": True, "rho": 0.0}
    saving = {"save_strategy": "steps", "save_steps": 5, "weight_average": "ema:0.5"}
    trainer = trained(tmp_path, **settings, **saving, **EVALUATED)
    best = int(trainer.state.best_model_checkpoint.rpartition("-")[2])
    assert_close(trainer.model.state_dict(), averaged(trainer.seen.after[:best], "ema:0.5", 20))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-12)


def test_low_precision_is_averaged_in_float32(tmp_path: Path) -> None:
    """In bfloat16 it would stand still: a thousandth of a step is less than the rounding."""
    settings = {"weight_average": "ema:0.999", "save_strategy": "steps", "save_steps": 20}
    model, data = build("mlp", dtype=torch.bfloat16), examples(torch.bfloat16)
    trainer, seen = make_trainer(model, tmp_path, data=data, **settings), Steps()
    trainer.add_callback(seen)
    trainer.train()
    wide = [{n: x.float() for n, x in state.items()} for state in seen.after]
    expected = averaged(wide, "ema:0.999", 20)
    kept = load_file(tmp_path / "checkpoint-20" / AVERAGE_FILE)
    for name, x in trainer.model.state_dict().items():
        torch.testing.assert_close(kept[name], expected[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(x, kept[name].bfloat16())
        assert not torch.equal(kept[name], wide[0][name])


@EACH
def test_an_exception_in_an_evaluation_puts_the_weights_back(kind: str, tmp_path: Path) -> None:
    class Fails(SAMTrainer):
        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("as asked")

    settings = {
        **EVALUATED,
        "eval_steps": 12,
        "trainer_kwargs": {"eval_dataset": examples(count=8)},
    }
    model, seen = build("mlp"), Steps()
    trainer = make_trainer(model, tmp_path, trainer=Fails, weight_average=kind, **settings)
    trainer.add_callback(seen)
    with pytest.raises(RuntimeError, match="as asked"):
        trainer.train()
    assert all(torch.equal(x, seen.after[-1][name]) for name, x in model.state_dict().items())


def test_what_is_unfrozen_later_was_constant_before(tmp_path: Path) -> None:
    class Unfreeze(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.model.body[2].requires_grad_(state.global_step >= 5)

    trainer = make_trainer(build("mlp"), tmp_path, weight_average="ema:0.9")
    seen = Steps()
    trainer.add_callback(Unfreeze())
    trainer.add_callback(seen)
    trainer.create_optimizer()
    trainer.train()
    assert_close(trainer.model.state_dict(), averaged(seen.after, "ema:0.9", 20))


def test_skipped_steps_do_not_count(tmp_path: Path) -> None:
    """As they are after gradients that overflowed: here by what accelerate reports."""
    trainer, seen = make_trainer(build("mlp"), tmp_path, weight_average="swa:0"), Steps()
    trainer.add_callback(seen)
    was_skipped = mock.PropertyMock(side_effect=lambda: trainer.state.global_step % 3 == 0)
    with mock.patch.object(Accelerator, "optimizer_step_was_skipped", was_skipped):
        trainer.train()
    made = [state for step, state in enumerate(seen.after, start=1) if step % 3]
    assert_close(trainer.model.state_dict(), averaged(made, "swa:0", 20))


def test_training_goes_on_from_the_average(tmp_path: Path) -> None:
    trainer = trained(tmp_path, weight_average="ema:0.9", max_steps=5)
    before = oracles.flat_weights(trainer.model)
    trainer.args.learning_rate, trainer.args.weight_average = 0.0, None
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.train()
    assert torch.equal(oracles.flat_weights(trainer.model), before)


@pytest.mark.parametrize(
    "written", ["ema", "ema:1", "ema:0", "swa:1", "swa:-1", "mean:0.5", "ema:0,9", "", 0.99]
)
def test_what_cannot_be_meant_is_refused(written: Any) -> None:
    with pytest.raises(ValueError, match="`weight_average` must be ema:decay with a decay above 0"):
        SAMConfig(output_dir="unused", weight_average=written)


def test_a_file_of_another_rule_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, save_strategy="steps", save_steps=10, weight_average="ema:0.9")
    again = make_trainer(build("dropout_and_batch_norm"), tmp_path, weight_average="swa:0")
    seen = Steps()
    again.add_callback(seen)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert "is of ema:0.9" in caplog.text
    assert_close(again.model.state_dict(), averaged(seen.after, "swa:0", 20))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    trained(tmp_path, save_strategy="steps", save_steps=10, weight_average="ema:0.9")
    (tmp_path / "checkpoint-10" / AVERAGE_FILE).write_bytes(b"no tensors")
    again = make_trainer(build("dropout_and_batch_norm"), tmp_path, weight_average="ema:0.9")
    with pytest.raises(ValueError, match="weight_average.safetensors must be a file of safetens"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


def test_norms_without_statistics_have_none_to_average(tmp_path: Path) -> None:
    model = build("batch_norm")
    model.body[1] = nn.BatchNorm1d(model.body[1].num_features, track_running_stats=False).double()
    trainer, seen = make_trainer(model, tmp_path, weight_average="ema:0.9"), Steps()
    trainer.add_callback(seen)
    trainer.train()
    assert_close(model.state_dict(), averaged(seen.after, "ema:0.9", 20))


def counted(monkeypatch: pytest.MonkeyPatch, trainer: Trainer) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    add = WeightAverage.add

    def watched(self: WeightAverage) -> None:
        add(self)
        found.append((trainer.state.global_step, self.count))

    monkeypatch.setattr(WeightAverage, "add", watched)
    return found


class RunsOutOfMemory(SAMTrainer):
    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        if len(inputs["labels"]) > 4 and self.state.global_step == 2:
            raise RuntimeError("CUDA out of memory. as asked")
        return super().training_step(model, inputs, *args, **kwargs)


def test_a_smaller_batch_counts_each_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(
        build("mlp"),
        tmp_path,
        trainer=RunsOutOfMemory,
        auto_find_batch_size=True,
        weight_average="ema:0.9",
    )
    found = counted(monkeypatch, trainer)
    trainer.train()
    assert found[-20:] == [(step, step) for step in range(1, 21)]


def test_a_longer_run_averages_its_own_last_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"weight_average": "swa:0.75", "save_strategy": "steps", "save_steps": 10}
    make_trainer(build("mlp"), tmp_path, max_steps=20, **settings).train()
    trainer = make_trainer(build("mlp"), tmp_path, max_steps=40, **settings)
    found = counted(monkeypatch, trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert found == [(30 + n, n) for n in range(1, 11)]


def test_optimizers_with_an_average_of_their_own_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(
        build("mlp"), tmp_path, optim="schedule_free_sgd", weight_average="ema:0.9"
    )
    with pytest.raises(ValueError, match="got SGDScheduleFree, which evaluates an average of its"):
        trainer.train()


def test_pushing_the_weights_of_checkpoints_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path, weight_average="ema:0.9")
    trainer.args.push_to_hub = True  # without a Hub, of which none is needed for the refusal
    with pytest.raises(ValueError, match="got `hub_strategy=every_save`, which pushes the weights"):
        trainer.train()


def test_an_average_that_never_begins_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stops(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 4

    trainer = make_trainer(build("mlp"), tmp_path, weight_average="swa:0.5")
    trainer.add_callback(Stops())
    trainer.train()
    assert "`weight_average=swa:0.5` begins after 10 steps, got 4" in caplog.text


def test_what_callbacks_make_of_the_weights_counts(tmp_path: Path) -> None:
    class Clamps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with torch.no_grad():
                for param in trainer.model.parameters():
                    param.clamp_(-0.1, 0.1)

    trainer = make_trainer(build("mlp"), tmp_path, weight_average="ema:0.9")
    trainer.add_callback(Clamps())
    trainer.train()
    assert oracles.flat_weights(trainer.model).abs().max() <= 0.1 + 1e-12


def test_parameters_outside_the_model_are_averaged(tmp_path: Path) -> None:
    class Shifted(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            return (1.0 + self.shift).square() * super().compute_loss(
                model, inputs, *args, **kwargs
            )

        def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
            super().create_optimizer(*args).add_param_group({"params": [self.shift]})
            return self.optimizer

    model, shifts = build("mlp"), []
    Shifted.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))
    trainer = make_trainer(model, tmp_path, trainer=Shifted, weight_average="ema:0.9", rho=0.0)

    class Notes(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            shifts.append({"shift": trainer.shift.detach().clone()})

    trainer.add_callback(Notes())
    trainer.train()
    assert_close({"shift": trainer.shift.detach()}, averaged(shifts, "ema:0.9", 20))
