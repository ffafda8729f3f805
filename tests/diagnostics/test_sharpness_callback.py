"""Sharpness in the training log: what is measured, what it costs, and what it leaves alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import build, examples, make_trainer
from measured import batches
from tiny_transformers import images, vit
from torch import Tensor, nn
from transformers import TrainerCallback

from hf_sam import SAMTrainer
from hf_sam.diagnostics import SharpnessCallback, hessian, of_trainer, sharpness

EVALUATING = {"eval_strategy": "steps", "eval_steps": 5, "per_device_eval_batch_size": 16}


def trainer_of(tmp_path: Path, name: str = "dropout_and_batch_norm", **settings: Any) -> Any:
    data = {"eval_dataset": examples()[:16], **settings.pop("trainer_kwargs", {})}
    return make_trainer(build(name), tmp_path, trainer_kwargs=data, **{**EVALUATING, **settings})


def logged(trainer: Any, entry: str) -> list[float]:
    return [line[entry] for line in trainer.state.log_history if entry in line]


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    without = trainer_of(tmp_path / "a")
    without.train()
    with_it = trainer_of(tmp_path / "b")
    with_it.add_callback(SharpnessCallback(with_it, lanczos_steps=3))
    with_it.train()
    for one, other in zip(
        without.model.state_dict().values(), with_it.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    assert logged(without, "loss") == logged(with_it, "loss")
    assert logged(without, "eval_loss") == logged(with_it, "eval_loss")


def test_logs_what_the_functions_measure(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "mlp", max_steps=5)
    callback = SharpnessCallback(trainer, rho=0.1, max_batches=2, directions=4, lanczos_steps=40)
    trainer.add_callback(callback)
    trainer.train()
    data = batches(16, 16, 16)[:2]
    found = sharpness(trainer.model, data, rho=0.1, directions=4, progress=False)
    curvature = hessian(trainer.model, data, trace_probes=0, progress=False)
    assert logged(trainer, "probe_loss") == pytest.approx([found.setup.loss])
    assert logged(trainer, "probe_worst_case") == pytest.approx([found.worst_case])
    assert logged(trainer, "probe_average") == pytest.approx([found.average.mean])
    assert logged(trainer, "probe_lambda_max") == pytest.approx([curvature.lambda_max], rel=1e-3)


def test_goes_to_whatever_reports(tmp_path: Path) -> None:
    class Reporter(TrainerCallback):
        seen: list[dict[str, float]] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
            self.seen.append(dict(logs))

    trainer = trainer_of(tmp_path, "mlp")
    trainer.add_callback(Reporter())
    trainer.add_callback(SharpnessCallback(trainer))
    trainer.train()
    assert len([logs for logs in Reporter.seen if "probe_worst_case" in logs]) == 4
    assert "probe_lambda_max" not in Reporter.seen[-1]


def test_probe_batches_are_fixed(tmp_path: Path) -> None:
    """Although the data set draws anew at each access."""

    class Augmented(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 48

        def __getitem__(self, i: int) -> dict[str, Tensor]:
            row = examples()[i]
            return {**row, "x": row["x"] + torch.randn(6)}

    trainer = trainer_of(tmp_path, "mlp", learning_rate=0.0, data=Augmented())
    trainer.add_callback(SharpnessCallback(trainer))
    trainer.train()
    assert len(set(logged(trainer, "probe_loss"))) == 1
    assert len(logged(trainer, "probe_loss")) == 4


def test_cost_is_the_stated_one(tmp_path: Path) -> None:
    """Each evaluation: one backward, 2 + 2 directions forward, two more of both a Lanczos step."""
    trainer = trainer_of(tmp_path, "mlp")
    callback = SharpnessCallback(trainer, max_batches=1, directions=3)
    calls = {"forward": 0}

    def count(*args: Any) -> None:
        calls["forward"] += 1

    callback.measure()  # fetches the batches
    trainer.model.register_forward_hook(count)
    callback.measure()
    assert calls["forward"] == 1 + 2 + 2 * 3  # the loss at w, its gradient, the ascent, directions


def test_adapter_takes_the_trainers_own_loss(tmp_path: Path) -> None:
    """Label smoothing, by hand."""
    trainer = make_trainer(
        vit(0.0), tmp_path, data=images(), label_smoothing_factor=0.3,
        per_device_eval_batch_size=48, dtype=torch.float32,
    )  # fmt: skip
    pixels = torch.stack([row["pixel_values"] for row in images()]).float()
    labels = torch.stack([row["labels"] for row in images()])
    with torch.no_grad():
        logits = trainer.model.eval()(pixel_values=pixels).logits
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.3)
    found = sharpness(*of_trainer(trainer), dtype=torch.float32, progress=False)
    assert found.setup.loss == pytest.approx(float(expected), rel=1e-5)
    assert found.setup.examples == 48


def test_adapter_takes_other_data(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "mlp")
    assert sharpness(*of_trainer(trainer, examples()[:10]), progress=False).setup.examples == 10
    trainer.train_dataset = None
    with pytest.raises(ValueError, match="the one that is meant as `data`"):
        of_trainer(trainer)


def test_several_data_sets_are_measured_once_a_step(tmp_path: Path) -> None:
    several = {"one": examples()[:16], "two": examples()[16:32]}
    trainer = trainer_of(tmp_path, "mlp", trainer_kwargs={"eval_dataset": several})
    trainer.add_callback(SharpnessCallback(trainer))
    trainer.train()
    assert len(logged(trainer, "probe_loss")) == 4


def test_a_loss_that_is_not_finite_ends_no_training(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "mlp", learning_rate=1e308, rho=0.0)
    trainer.add_callback(SharpnessCallback(trainer))
    trainer.train()
    assert trainer.state.global_step == 20 and not logged(trainer, "probe_loss")


@pytest.mark.parametrize("error", [ValueError("nan"), RuntimeError("out of memory")])
def test_a_measurement_that_fails_ends_no_training(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fails(self: SharpnessCallback) -> dict[str, float]:
        raise error

    monkeypatch.setattr(SharpnessCallback, "measure", fails)
    trainer = trainer_of(tmp_path, "mlp")
    trainer.add_callback(SharpnessCallback(trainer))
    trainer.train()
    assert trainer.state.global_step == 20 and not logged(trainer, "probe_loss")
    assert f"logs nothing: {error}" in caplog.text or f": RuntimeError: {error}" in caplog.text


def test_each_training_is_measured(tmp_path: Path) -> None:
    """As in a hyperparameter search, where the next one may have its only evaluation as late."""
    trainer = trainer_of(tmp_path, "mlp", max_steps=5)
    trainer.add_callback(SharpnessCallback(trainer))
    for _ in range(2):
        trainer.train()
        assert len(logged(trainer, "probe_loss")) == 1
    trainer.evaluate()  # of other weights, perhaps
    assert len(logged(trainer, "probe_loss")) == 2


class Centred(nn.Module):
    """A loss that moves a centre and statistics, draws from its own generator, counts and logs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64)
        self.register_buffer("centre", torch.zeros(4, dtype=torch.float64))
        self.generator = torch.Generator().manual_seed(1)
        self.counted_once = ("seen",)
        self.seen: list[float] = []

    def forward(self, outputs: Any, labels: Tensor, **kwargs: Any) -> Tensor:
        logits = outputs["logits"]
        self.centre += logits.detach().mean(0)
        noise = torch.randn(logits.shape, generator=self.generator, dtype=logits.dtype)
        loss = torch.nn.functional.cross_entropy(self.norm(logits) + 0.1 * noise, labels)
        self.seen.append(float(loss.detach()))
        return loss


class Named(nn.Module):
    """A part of the model has the name that the loss has where it is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.loss = build("mlp"), nn.Dropout(0.5)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return self.body(self.loss(x), labels)


class ModelLoss(nn.Module):
    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        return model(**batch)["loss"]


def test_model_and_loss_may_share_a_name() -> None:
    model = Named().train()
    plain = sharpness(model.body, batches(48), progress=False)
    assert sharpness(model, batches(48), ModelLoss(), progress=False).worst_case == plain.worst_case


class Metrics(SAMTrainer):
    """As trl's Trainers do."""

    _metrics: dict[str, list[float]]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        found = super().compute_loss(*args, **kwargs)
        loss = found[0] if isinstance(found, tuple) else found
        self._metrics["train" if self.model.training else "eval"].append(float(loss))
        self.log({"inner": 1.0})
        return found


def test_what_the_loss_holds_is_as_it_was(tmp_path: Path) -> None:
    loss = Centred()
    trainer = trainer_of(
        tmp_path, "mlp", trainer_kwargs={"compute_loss_func": loss}, trainer=Metrics
    )
    trainer._metrics = {"train": [], "eval": [0.5]}
    loss.seen.append(0.25)
    callback = SharpnessCallback(trainer)
    state, draws, modes = loss.state_dict(), loss.generator.get_state(), loss.norm.training
    before = {name: x.clone() for name, x in state.items()}
    assert callback.measure() == callback.measure()
    sharpness(*of_trainer(trainer), progress=False)
    assert all(torch.equal(x, before[name]) for name, x in loss.state_dict().items())
    assert torch.equal(loss.generator.get_state(), draws) and loss.norm.training == modes
    assert trainer._metrics == {"train": [], "eval": [0.5]} and loss.seen == [0.25]
    assert not logged(trainer, "inner")


def test_mixed_precision_of_the_trainer_is_set_aside(tmp_path: Path) -> None:
    """Accelerate leaves autocast in the model's forward pass; it is there afterwards too."""
    trainer = make_trainer(
        build("mlp", torch.float32), tmp_path, bf16=True, dtype=torch.float32, max_steps=2
    )
    trainer.train()
    wrapped = vars(trainer.model)["forward"]
    data = batches(48, dtype=torch.float32)
    found = sharpness(trainer.model, data, progress=False)
    assert vars(trainer.model)["forward"] is wrapped
    plain = build("mlp", torch.float32)
    plain.load_state_dict(trainer.model.state_dict())
    assert found == sharpness(plain, data, progress=False)


@pytest.mark.parametrize(
    "bad", [{"rho": 0.0}, {"sigma": 0.0}, {"max_batches": 0}, {"directions": 0}]
)
def test_bad_numbers_are_refused(bad: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SharpnessCallback(trainer_of(tmp_path), **bad)
