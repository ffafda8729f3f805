"""Inside the Trainer: what stays the plain Trainer's, what is logged, resumed and refused."""

import copy
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from cases import Recorder, build, examples, make_trainer
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.distributed import require_supported

LR = 0.1


def states(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}], ids=str)
@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_rho_zero_is_the_plain_trainer(
    optim: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    results = []
    for kind in (
        {"trainer": Trainer, "config": TrainingArguments},
        {"trainer": SAMTrainer, "config": SAMConfig, "rho": 0.0},
    ):
        trainer = make_trainer(
            build("dropout_and_batch_norm"), tmp_path, optim=optim, **kind, **settings
        )
        trainer.train()
        logs = [
            {k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k}
            for entry in trainer.state.log_history
        ]
        results.append((states(trainer), trainer.optimizer.state_dict(), logs))
    plain, sam = results
    assert all(torch.equal(plain[0][name], tensor) for name, tensor in sam[0].items())
    assert plain[2] == sam[2]
    torch.testing.assert_close(plain[1], sam[1], rtol=0, atol=0)


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
        logging_steps=300, learning_rate=0.0, rho=1e-3,
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


def test_resume_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 10}
    straight = make_trainer(build("dropout_and_batch_norm"), tmp_path / "a", **settings)
    straight.train()
    resumed = make_trainer(build("dropout_and_batch_norm", seed=9), tmp_path / "b", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-10"))
    assert all(torch.equal(states(straight)[n], t) for n, t in states(resumed).items())


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


@pytest.mark.parametrize(
    ("backend", "devices", "message"),
    [
        ("DEEPSPEED", 1, "got the backend DEEPSPEED: use one device or DDP"),
        ("FSDP", 1, "got the backend FSDP"),
        ("NO", 4, "got 4 under DataParallel: start with `accelerate launch --num_processes 4`"),
    ],
)
def test_unsupported_backends_are_refused(backend: str, devices: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_supported(backend, devices=devices, optimizer="sgd", params=[])


@pytest.mark.parametrize("name", ["lomo", "adalomo", "galore_adamw_layerwise"])
def test_optimizers_that_step_in_backward_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"got `optim={name}`, which steps inside"):
        require_supported("NO", devices=1, optimizer=name, params=[])


def test_sharded_parameters_are_refused() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sharded = distribute_tensor(torch.ones(4), init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"got sharded ones \(DTensor\)"):
            require_supported("NO", devices=1, optimizer="sgd", params=[sharded])
    finally:
        dist.destroy_process_group()


def test_refusals_come_when_training_starts(tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path)
    trainer.args.rho = -1.0  # as a hyperparameter search sets it
    with pytest.raises(ValueError, match="`rho` must be >= 0, got -1.0"):
        trainer.train()


def test_backend_is_checked_when_training_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_sam.distributed.REPLICATED", frozenset())
    with pytest.raises(ValueError, match="got the backend NO"):
        make_trainer(build("mlp"), tmp_path).train()
    make_trainer(build("mlp"), tmp_path, rho=0.0).train()


def test_optimizer_is_checked_when_training_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_sam.distributed.FUSED_OPTIMIZERS", ("sgd",))
    with pytest.raises(ValueError, match="got `optim=sgd`"):
        make_trainer(build("mlp"), tmp_path).train()
