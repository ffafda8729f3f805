"""Windows that go otherwise than planned: skipped, stopped, changed, not finite."""

import copy
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
from cases import CLASSES, FEATURES, Classifier, Recorder, build, make_trainer
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_sam import SAMTrainer, perturbed
from hf_sam.config import ASCENT_SCOPES

LR = 0.1


class Skips(SAMTrainer):
    """Leaves out the micro-batches whose position is named, as trainers do that catch an error."""

    skipped: tuple[int, ...] = ()
    position = -1

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.position += 1
        if self.position in self.skipped:
            return torch.zeros((), dtype=torch.float64)
        return super().training_step(model, inputs, num_items_in_batch)


class SkipsBySelf(Skips):
    """Notices only in the forward pass."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.position += 1
        try:
            return SAMTrainer.training_step(self, model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError:
            return torch.zeros((), dtype=torch.float64)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.position in self.skipped:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize("scope", ASCENT_SCOPES)
@pytest.mark.parametrize("kind", [Skips, SkipsBySelf])
def test_a_skipped_micro_batch_leaves_the_others(
    kind: type[Skips], scope: str, tmp_path: Path
) -> None:
    """Of the first window's four micro-batches the second is missing; the loss is divided by 4."""
    model, recorder = build("mlp"), Recorder()
    gradient, w = oracles.flat_gradient(copy.deepcopy(model)), oracles.flat_weights(model)
    trainer = make_trainer(
        model, tmp_path, trainer=kind, recorder=recorder, max_steps=1, ascent_scope=scope,
        gradient_accumulation_steps=4, per_device_train_batch_size=4,
    )  # fmt: skip
    trainer.skipped = (1,)
    trainer.train()
    window = [recorder.batches[i] for i in (0, 2, 3)]
    shared = scope != "micro_batch"
    g = oracles.sam_gradient(gradient, w, window, rho=0.05, shared=shared) * 3 / 4
    torch.testing.assert_close(oracles.flat_weights(model), w - LR * g, rtol=0, atol=1e-12)


def test_a_step_whose_last_micro_batch_is_skipped_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr("hf_sam.step.window.logger.warning", warnings.append)
    trainer = make_trainer(
        build("mlp"), tmp_path, trainer=Skips, max_steps=3, ascent_scope="rank",
        gradient_accumulation_steps=2, per_device_train_batch_size=4,
    )  # fmt: skip
    trainer.skipped = (3,)
    trainer.train()
    assert len(warnings) == 1
    assert "Optimizer step 1 had no gradient" in warnings[0]


@pytest.mark.parametrize("scope", ASCENT_SCOPES)
def test_inputs_changed_in_place_are_changed_once(scope: str, tmp_path: Path) -> None:
    class Noisy(SAMTrainer):
        in_place = False

        def compute_loss(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
            if self.in_place:
                inputs["x"] += 1.0
            else:
                inputs["x"] = inputs["x"] + 1.0
            return super().compute_loss(model, inputs, **kwargs)

    trained = []
    for in_place in (False, True):
        trainer = make_trainer(
            build("mlp"), tmp_path, trainer=Noisy, ascent_scope=scope, max_steps=4,
            gradient_accumulation_steps=2,
        )  # fmt: skip
        trainer.in_place = in_place
        trainer.train()
        trained.append(oracles.flat_weights(trainer.model))
    assert torch.equal(*trained)


class Freezes(TrainerCallback):
    """After the first micro-batch of the run."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        self.layer.requires_grad_(False)


def test_a_layer_frozen_within_a_window_moves_no_other_gradient(tmp_path: Path) -> None:
    """Its neighbour has the same shapes."""
    layers = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES), nn.Tanh()
    model, recorder = Classifier(*layers, nn.Linear(FEATURES, CLASSES)).double(), Recorder()
    reference = copy.deepcopy(model)
    reference.body[0].requires_grad_(False)
    left = [param for param in reference.parameters() if param.requires_grad]
    trainer = make_trainer(
        model, tmp_path, recorder=recorder, max_steps=1, ascent_scope="rank",
        gradient_accumulation_steps=2, per_device_train_batch_size=4,
    )  # fmt: skip
    trainer.add_callback(Freezes(model.body[0]))
    trainer.train()
    window = recorder.batches[:2]
    clean = torch.autograd.grad(sum(reference(**batch)["loss"] for batch in window) / 2, left)
    norm = torch.cat([g.flatten() for g in clean]).norm()
    with perturbed(left, [0.05 * g / norm for g in clean]):
        found = torch.autograd.grad(sum(reference(**batch)["loss"] for batch in window) / 2, left)
    for param, g in zip(left, found, strict=True):
        param.data -= LR * g
    for own, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-12)


def test_batches_may_be_tuples(tmp_path: Path) -> None:
    class Tuples(SAMTrainer):
        def compute_loss(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
            return super().compute_loss(model, {"x": inputs[0], "labels": inputs[1]}, **kwargs)

    def collate(rows: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        return torch.stack([r["x"] for r in rows]), torch.stack([r["labels"] for r in rows])

    trained = []
    for settings in ({"trainer": Tuples, "recorder": collate}, {}):
        trainer = make_trainer(build("mlp"), tmp_path, max_steps=4, **settings)
        trainer.train()
        trained.append(oracles.flat_weights(trainer.model))
    assert torch.equal(*trained)


def test_a_step_may_be_made_without_training(tmp_path: Path) -> None:
    """As in a notebook: one micro-batch is a window."""
    model, rows = build("mlp"), Recorder()
    batch = rows(make_trainer(model, tmp_path).train_dataset[:8])
    expected = oracles.sam_gradient(
        oracles.flat_gradient(copy.deepcopy(model)), oracles.flat_weights(model), [batch], rho=0.05
    )
    make_trainer(model, tmp_path, ascent_scope="rank").training_step(model, batch)
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_nothing_of_a_window_outlives_training(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = True

    settings = {"gradient_accumulation_steps": 2, "ascent_scope": "rank"}
    trainer = make_trainer(build("mlp"), tmp_path, **settings)
    trainer.add_callback(Stop())
    trainer.train()
    assert trainer._window is None
    assert trainer._last_inputs is None


def test_rho_switched_off_in_mid_window_loses_nothing(tmp_path: Path) -> None:
    """The rest of the window is trained with rho = 0, and so is its beginning."""

    class SwitchOff(TrainerCallback):
        def on_substep_end(self, args: Any, *others: Any, **kwargs: Any) -> None:
            args.rho = 0.0

    trained = []
    for rho in (0.0, 0.5):
        trainer = make_trainer(
            build("mlp"), tmp_path, rho=rho, ascent_scope="rank", max_steps=1,
            gradient_accumulation_steps=2,
        )  # fmt: skip
        trainer.add_callback(SwitchOff())
        trainer.train()
        trained.append(oracles.flat_weights(trainer.model))
    torch.testing.assert_close(*trained, rtol=0, atol=1e-14)


def test_log_filters_a_nan_as_the_trainer_does(tmp_path: Path) -> None:
    """Its running mean divides by the finished steps, in every micro-batch of a window."""

    class Nan(SAMTrainer):
        calls = 0

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            loss = super().compute_loss(*args, **kwargs)
            return loss * float("nan") if self.calls in (5, 6) else loss

    trainer = make_trainer(
        build("mlp"), tmp_path, trainer=Nan, max_steps=2, logging_steps=2,
        gradient_accumulation_steps=4, learning_rate=0.0,
    )  # fmt: skip
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["perturbed_loss"] - entry["sharpness"] == pytest.approx(entry["loss"], rel=1e-5)


@pytest.mark.skipif(
    not hasattr(Trainer, "loss_is_scaled_for_ga"), reason="a flag of later versions than 5.17"
)
@pytest.mark.parametrize("scope", ASCENT_SCOPES)
@pytest.mark.parametrize("scaled", [None, False, True])
def test_ascent_grad_norm_follows_the_trainers_flag(
    scaled: bool | None, scope: str, tmp_path: Path
) -> None:
    """A loss function gives one norm, whether it, the Trainer or nobody divides its means."""

    def mean(out: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return F.cross_entropy(out["logits"], labels) / (2 if scaled else 1)

    class Uncounted(SAMTrainer):
        loss_is_scaled_for_ga = scaled

        def _get_num_items_in_batch(self, *args: Any) -> None:
            return None

    entries = []
    for kwargs in ({"compute_loss_func": mean}, {}):
        trainer = make_trainer(
            build("mlp"), tmp_path, trainer=Uncounted if kwargs else SAMTrainer, max_steps=1,
            logging_steps=1, gradient_accumulation_steps=2, ascent_scope=scope,
            trainer_kwargs=kwargs,
        )  # fmt: skip
        trainer.train()
        entries.append(trainer.state.log_history[0]["ascent_grad_norm"])
    assert entries[0] == pytest.approx(entries[1], rel=1e-6)
