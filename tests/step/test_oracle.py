"""Training with SAMTrainer follows the paper's equations, computed independently in float64."""

import copy
import math
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
from cases import MODELS, Recorder, build, make_trainer, queue
from torch import Tensor
from trajectory import FLOAT32, FLOAT64, STEPS, errors, oracle_weights
from transformers import PreTrainedConfig, Trainer

from hf_sam import SAMMixin, SAMTrainer
from hf_sam.config import ASCENT_SCOPES


@pytest.mark.parametrize("optimizer", ["sgd", "sgd with momentum", "adamw_torch"])
@pytest.mark.parametrize("name", MODELS)
def test_twenty_steps_equal_the_oracle(name: str, optimizer: str, tmp_path: Path) -> None:
    if name == "sometimes_used" and optimizer != "sgd":
        pytest.skip(
            "torch skips parameters without a gradient: no momentum step, unlike the oracle"
        )
    largest, mean = errors(build(name), tmp_path, optimizer=optimizer)
    assert largest < FLOAT64
    assert mean < FLOAT64 / 10


@pytest.mark.parametrize("optimizer", ["sgd with momentum", "adamw_torch"])
@pytest.mark.parametrize("name", ["mlp", "batch_norm", "tied", "frozen"])
def test_float32_stays_within_rounding(name: str, optimizer: str, tmp_path: Path) -> None:
    model = build(name, torch.float32)
    assert errors(model, tmp_path, optimizer=optimizer, dtype=torch.float32)[0] < FLOAT32


@pytest.mark.parametrize(
    "sam",
    [
        {"rho": 0.5, "adaptive": True},
        {"rho": 0.5, "adaptive": True, "eta": 0.1},
        {"rho": 0.05, "perturbation_norm": 1.5},
        {"rho": 0.02, "perturbation_norm": 4.0, "adaptive": True},
        {"rho": 0.005, "perturbation_norm": math.inf},
        {"rho": 5.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["mlp", "dropout_and_batch_norm", "tied"])
def test_every_perturbation_equals_the_oracle(
    name: str, sam: dict[str, Any], tmp_path: Path
) -> None:
    assert errors(build(name), tmp_path, sam=dict(sam))[0] < FLOAT64


@pytest.mark.parametrize("accumulation", [2, 3])
@pytest.mark.parametrize("name", ["mlp", "dropout_and_batch_norm", "sometimes_used"])
def test_each_micro_batch_has_its_own_perturbation(
    name: str, accumulation: int, tmp_path: Path
) -> None:
    """48 examples in sixes of 4 leave shorter last windows: 12 micro-batches, window 5 below."""
    assert errors(build(name), tmp_path, accumulation=accumulation)[0] < FLOAT64


@pytest.mark.parametrize("scope", ASCENT_SCOPES)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_queue_begins_both_passes_where_it_was(
    accumulation: int, scope: str, tmp_path: Path
) -> None:
    sam = {"rho": 0.3, "ascent_scope": scope}
    expected = {"shared": scope != "micro_batch"}
    found = errors(queue(), tmp_path, accumulation=accumulation, sam=sam, expected=expected)
    assert found[0] < FLOAT64


def test_short_last_window_of_an_epoch(tmp_path: Path) -> None:
    """48 examples in micro-batches of 8 are 6: windows of 4 and 2 a epoch."""
    recorder, model = Recorder(), build("mlp")
    reference = copy.deepcopy(model)
    make_trainer(
        model,
        tmp_path,
        recorder=recorder,
        gradient_accumulation_steps=4,
        num_train_epochs=3,
        max_steps=-1,
    ).train()
    windows = []
    for epoch in range(3):
        batches = recorder.batches[6 * epoch : 6 * epoch + 6]
        windows += [batches[:4], batches[4:]]
    expected = oracle_weights(reference, windows, optimizer="sgd", rho=0.05)
    torch.testing.assert_close(oracles.flat_weights(model), expected, rtol=0, atol=1e-12)


def test_clipping_acts_on_the_descent_gradient(tmp_path: Path) -> None:
    assert errors(build("mlp"), tmp_path, max_grad_norm=0.1)[0] < FLOAT64


def test_without_replay_the_masks_differ(tmp_path: Path) -> None:
    replayed = errors(build("dropout"), tmp_path)
    fresh = errors(build("dropout"), tmp_path, replay_rng=False)
    assert replayed[0] < FLOAT64 < 1e-4 < fresh[0]


def label_smoothing(out: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    log_p = -F.log_softmax(out["logits"], dim=-1)
    target = log_p.gather(1, batch["labels"][:, None]).mean()
    return 0.9 * target + 0.1 * log_p.mean()


def test_label_smoothing_is_in_both_passes(tmp_path: Path) -> None:
    model = build("mlp")
    gradient = oracles.flat_gradient(copy.deepcopy(model), label_smoothing)
    model.config = PreTrainedConfig()  # the Trainer asks it for the problem type
    # transformers sums the smoothed part in float32
    assert errors(model, tmp_path, gradient=gradient, label_smoothing_factor=0.1)[0] < 1e-7


@pytest.mark.parametrize("accumulation", [1, 2])
def test_custom_loss_sees_the_same_item_count_twice(accumulation: int, tmp_path: Path) -> None:
    counts: list[float] = []

    def squared_error(out: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
        counts.append(float(num_items_in_batch))
        target = F.one_hot(labels, out["logits"].shape[-1])
        return (out["logits"] - target).square().sum() / num_items_in_batch

    def mean_squared_error(out: Any, batch: dict[str, Tensor]) -> Tensor:
        target = F.one_hot(batch["labels"], out["logits"].shape[-1])
        return (out["logits"] - target).square().sum() / len(target)

    model = build("mlp")
    largest, _ = errors(
        model,
        tmp_path,
        accumulation=accumulation,
        gradient=oracles.flat_gradient(copy.deepcopy(model), mean_squared_error),
        trainer_kwargs={"compute_loss_func": squared_error},
    )
    assert largest < FLOAT64
    assert counts == [8.0 * accumulation] * (2 * STEPS * accumulation)


def test_mixes_into_any_trainer(tmp_path: Path) -> None:
    class Doubled(Trainer):
        """A Trainer with a training step and a loss of its own, which changes its inputs."""

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            inputs["x"] = 2 * inputs.pop("x")
            return super().training_step(model, inputs, num_items_in_batch)

    class DoubledSAM(SAMMixin, Doubled):
        pass

    model = build("mlp")
    single = oracles.flat_gradient(copy.deepcopy(model))

    def gradient(w: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return single(w, {**batch, "x": 2 * batch["x"]})

    assert errors(model, tmp_path, gradient=gradient, trainer=DoubledSAM)[0] < FLOAT64


def test_inputs_are_prepared_once_for_each_pass(tmp_path: Path) -> None:
    """Users normalise or augment in `_prepare_inputs`: twice over would be another batch."""

    class Shifted(SAMTrainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            inputs = super()._prepare_inputs(inputs)
            return {**inputs, "x": inputs["x"] + 1.0} if self.model.training else inputs

    model = build("mlp")
    single = oracles.flat_gradient(copy.deepcopy(model))

    def gradient(w: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return single(w, {**batch, "x": batch["x"] + 1.0})

    assert errors(model, tmp_path, gradient=gradient, trainer=Shifted)[0] < FLOAT64
