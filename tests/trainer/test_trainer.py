"""Inside the Trainer: what stays the plain Trainer's, what is logged, resumed and refused."""

import copy
from pathlib import Path
from typing import Any

import oracles
import pytest
import scenarios
import torch
import torch.nn.functional as F
from cases import Recorder, build, examples, make_trainer
from naive import NaiveSAMTrainer
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_sam.config import ASCENT_SCOPES

LR = 0.1


def states(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def test_rho_zero_is_the_plain_trainer(tmp_path: Path) -> None:
    """Callbacks in the same order with the same arguments, logs, checkpoints file by file."""
    assert scenarios.differences_at_rho_zero(tmp_path / "run") == []


@pytest.mark.parametrize("scope", ASCENT_SCOPES)
def test_nobody_sees_perturbed_weights(scope: str, tmp_path: Path) -> None:
    assert scenarios.events_that_saw_other_weights(scope, tmp_path / "run") == []


def test_somebody_sees_the_naive_sams_weights(tmp_path: Path) -> None:
    naive = {"trainer": NaiveSAMTrainer}
    assert scenarios.events_that_saw_other_weights("micro_batch", tmp_path / "run", naive)


@pytest.mark.parametrize("scope", ["micro_batch", "rank"])
@pytest.mark.parametrize("name", ["mlp", "dropout", "sometimes_used", "routed"])
def test_windows_equal_the_equations(name: str, scope: str) -> None:
    # the order of float64 sums differs
    assert scenarios.error_to_the_equations(name, scope, 3) < 1e-12


def test_plain_arguments_get_the_defaults(tmp_path: Path) -> None:
    first = make_trainer(build("mlp"), tmp_path, config=TrainingArguments)
    second = make_trainer(build("mlp"), tmp_path, rho=0.05)
    first.train(), second.train()
    assert all(torch.equal(states(second)[n], t) for n, t in states(first).items())


def test_same_seed_same_trajectory(tmp_path: Path) -> None:
    results = []
    for _ in range(2):
        trainer = make_trainer(build("dropout_and_batch_norm"), tmp_path, seed=3)
        trainer.train()
        results.append(states(trainer))
    assert all(torch.equal(results[0][n], t) for n, t in results[1].items())


def test_log_carries_what_the_passes_found(tmp_path: Path) -> None:
    """Against a loop that evaluates the losses and the gradient norm by hand."""
    model, recorder = build("mlp"), Recorder()
    reference = copy.deepcopy(model)
    trainer = make_trainer(
        model,
        tmp_path,
        recorder=recorder,
        gradient_accumulation_steps=2,
        max_steps=4,
        logging_steps=2,
    )
    trainer.train()
    gradient = oracles.flat_gradient(reference)
    shapes = [p.shape for p in reference.parameters()]

    def loss(w: Tensor, batch: Any) -> float:
        pieces = w.split([s.numel() for s in shapes])
        for p, piece, shape in zip(reference.parameters(), pieces, shapes, strict=True):
            p.copy_(piece.view(shape))
        return float(reference(**batch)["loss"])

    w = oracles.flat_weights(reference)
    reference.requires_grad_(False)
    clean, moved, norms = [], [], []
    for i in range(0, 8, 2):
        window = recorder.batches[i : i + 2]
        for batch in window:
            g = gradient(w, batch)
            clean.append(loss(w, batch))
            moved.append(loss(w + oracles.perturbation(g, rho=0.05), batch))
            norms.append(float(g.norm()))
        w = w - LR * oracles.sam_gradient(gradient, w, window, rho=0.05)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry, part in zip(entries, (slice(0, 4), slice(4, 8)), strict=True):
        mean_clean, mean_moved = sum(clean[part]) / 4, sum(moved[part]) / 4
        # the Trainer sums losses in float32
        assert entry["loss"] == pytest.approx(mean_clean, rel=1e-6)
        assert entry["perturbed_loss"] == pytest.approx(mean_moved, rel=1e-6)
        assert entry["sharpness"] == pytest.approx(mean_moved - mean_clean, abs=1e-6)
        assert entry["ascent_grad_norm"] == pytest.approx(sum(norms[part]) / 4, rel=1e-6)


def test_ascent_grad_norm_is_that_of_the_mean_loss(tmp_path: Path) -> None:
    """The same batches give the same norm, however the loss is scaled for accumulation."""

    def summed(out: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
        return F.cross_entropy(out["logits"], labels, reduction="sum") / num_items_in_batch

    norms = []
    for kwargs in ({}, {"compute_loss_func": summed}):
        trainer = make_trainer(
            build("mlp"),
            tmp_path,
            gradient_accumulation_steps=3,
            max_steps=2,
            logging_steps=1,
            trainer_kwargs=kwargs,
        )
        trainer.train()
        norms.append([e["ascent_grad_norm"] for e in trainer.state.log_history if "loss" in e])
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_log_averages_over_the_steps_that_had_a_perturbation(tmp_path: Path) -> None:
    """A callback that switches SAM on in mid-interval must not dilute the averages."""

    class SwitchOn(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            args.rho = 0.05 if state.global_step >= 8 else 0.0

    trainer = make_trainer(build("mlp"), tmp_path, rho=0.05, max_steps=10, logging_steps=10)
    trainer.add_callback(SwitchOn())
    trainer.train()
    entry = trainer.state.log_history[0]
    assert 0.5 * entry["loss"] < entry["perturbed_loss"] < 2 * entry["loss"]
    assert entry["sharpness"] > 0


def test_losses_are_summed_in_float32(tmp_path: Path) -> None:
    """At learning rate 0 the mean of many equal bfloat16 losses is each of them."""
    model = build("mlp", torch.bfloat16)
    trainer = make_trainer(
        model, tmp_path, dtype=torch.bfloat16, data=examples(torch.bfloat16, 8), max_steps=300,
        logging_steps=300, learning_rate=0.0, rho=1e-3, allow_rounded_perturbation=True,
    )  # fmt: skip
    trainer.train()
    entry = trainer.state.log_history[0]
    assert abs(entry["sharpness"]) < 0.02 * entry["loss"]


def test_sparse_gradients_train(tmp_path: Path) -> None:
    class Embeds(torch.nn.Module):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed = torch.nn.Embedding(4, 4, sparse=sparse, dtype=torch.float64)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": F.cross_entropy(self.embed(labels), labels)}

    gradients = []  # of one step: torch 2.11 cannot clip sparse ones, nor can the plain Trainer
    for sparse in (False, True):
        model = Embeds(sparse)
        trainer = make_trainer(model, tmp_path)
        trainer.current_gradient_accumulation_steps = 1
        batch = {"x": torch.zeros(8), "labels": torch.arange(8) % 4}
        trainer.training_step(model, batch)
        assert model.embed.weight.grad.is_sparse == sparse
        gradients.append(model.embed.weight.grad.to_dense())
    torch.testing.assert_close(*gradients)


def test_flops_count_both_passes(tmp_path: Path) -> None:
    class Counted(torch.nn.Module):
        main_input_name = "x"

        def __init__(self) -> None:
            super().__init__()
            self.body = build("mlp")

        def num_parameters(self, exclude_embeddings: bool = False) -> int:
            return 7

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return self.body(x=x, labels=labels)

    flops = []
    for rho in (0.0, 0.05):
        trainer = make_trainer(Counted(), tmp_path, rho=rho, max_steps=2)
        trainer.train()
        flops.append(trainer.state.total_flos)
    assert flops == [2 * 6 * 48 * 7, 2 * 2 * 6 * 48 * 7]


def test_optimizer_state_is_the_plain_trainers(tmp_path: Path) -> None:
    kinds = ({"trainer": Trainer, "config": TrainingArguments}, {})
    described = []
    for kind in kinds:
        trainer = make_trainer(build("mlp"), tmp_path, optim="adamw_torch", max_steps=2, **kind)
        trainer.train()
        state = trainer.optimizer.state_dict()
        described.append(
            (
                type(trainer.optimizer.optimizer),
                state["param_groups"],
                {i: {k: v.shape for k, v in s.items()} for i, s in state["state"].items()},
            )
        )
    assert described[0] == described[1]


def test_training_continues_after_evaluation(tmp_path: Path) -> None:
    """Evaluations and callbacks between the steps see w, never w + epsilon."""
    plain = make_trainer(build("batch_norm"), tmp_path)
    plain.train()
    watched = make_trainer(
        build("batch_norm"),
        tmp_path,
        eval_strategy="steps",
        eval_steps=3,
        trainer_kwargs={"eval_dataset": examples(count=16)},
    )
    watched.train()
    assert all(torch.equal(states(plain)[n], t) for n, t in states(watched).items())


def test_compiles_one_graph_for_clean_and_perturbed_weights(tmp_path: Path) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    settings = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    make_trainer(build("mlp"), tmp_path, max_steps=4, **settings).train()
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
