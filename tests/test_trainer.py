"""Training with SAMTrainer follows the paper's equations, computed independently in float64."""

import copy
import math
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
from cases import MODELS, Recorder, build, examples, make_trainer
from torch import Tensor
from transformers import PreTrainedConfig, Trainer, TrainerCallback, TrainingArguments

from hf_sam import SAMConfig, SAMMixin, SAMTrainer

STEPS, LR = 20, 0.1
# The oracle's rounding and the Trainer's differ in order only.
FLOAT64 = 1e-10
FLOAT32 = 1e-5  # 20 steps of float32 arithmetic, relative to the largest weight


def oracle_weights(
    model: torch.nn.Module,
    windows: list[list[Any]],
    *,
    optimizer: str,
    gradient: oracles.Gradient | None = None,
    max_grad_norm: float = 0.0,
    draws: list[Tensor] | None = None,
    **sam: Any,
) -> Tensor:
    """Train the flat vector of `model`'s weights on the recorded windows."""
    gradient = gradient or oracles.flat_gradient(model)
    w, state = oracles.flat_weights(model), {}
    for step, window in enumerate(windows):
        if draws is not None:
            torch.set_rng_state(draws[step])
        g = oracles.sam_gradient(gradient, w, window, **sam)
        if max_grad_norm:
            g = oracles.clip(g, max_grad_norm)
        if optimizer == "adamw_torch":
            w = oracles.adamw(w, g, state, lr=0.01)
        else:
            w = oracles.sgd(w, g, state, lr=LR, momentum=0.9 if "momentum" in optimizer else 0.0)
    return w


class DrawsAtSteps(TrainerCallback):
    """Remembers torch's random state when each step begins: data loading draws in between."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.states.append(torch.get_rng_state())


def errors(
    model: torch.nn.Module,
    tmp_path: Path,
    *,
    optimizer: str = "sgd",
    dtype: torch.dtype = torch.float64,
    accumulation: int = 1,
    gradient: oracles.Gradient | None = None,
    sam: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[float, float]:
    """Train with SAMTrainer and by the oracle; largest and mean error over the largest weight."""
    sam = {"rho": 0.05} if sam is None else sam
    reference = copy.deepcopy(model).double().train()
    recorder, draws = Recorder(), DrawsAtSteps()
    optim = {"optim": optimizer, "learning_rate": 0.01 if optimizer == "adamw_torch" else LR}
    if "momentum" in optimizer:
        optim = {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": LR}
    trainer = make_trainer(
        model,
        tmp_path,
        dtype=dtype,
        recorder=recorder,
        gradient_accumulation_steps=accumulation,
        **{**optim, **sam, **settings},
    )
    trainer.add_callback(draws)
    trainer.train()
    batches = [
        {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        for batch in recorder.batches
    ]
    windows = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
    norm = sam.pop("perturbation_norm", 2.0)
    adaptive = oracles.weight_mask(reference) if sam.pop("adaptive", False) else None
    expected = oracle_weights(
        reference,
        windows[:STEPS],
        optimizer=optimizer,
        gradient=gradient,
        max_grad_norm=settings.get("max_grad_norm", 0.0),
        draws=draws.states,
        p=norm,
        adaptive=adaptive,
        **sam,
    )
    difference = (oracles.flat_weights(model) - expected).abs() / expected.abs().max()
    return float(difference.max()), float(difference.mean())


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
    ("settings", "message"),
    [
        ({"optim": "lomo"}, "got `optim=lomo`, which steps inside"),
    ],
)
def test_unsupported_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    from hf_sam.distributed import require_supported

    with pytest.raises(ValueError, match=message):
        require_supported("NO", devices=1, optimizer=settings["optim"], params=[])


@pytest.mark.parametrize(
    ("backend", "devices", "message"),
    [
        ("DEEPSPEED", 1, "got the backend DEEPSPEED: use one device or DDP"),
        ("FSDP", 1, "got the backend FSDP"),
        ("NO", 4, "got 4 under DataParallel: start with `accelerate launch --num_processes 4`"),
    ],
)
def test_unsupported_backends_are_refused(backend: str, devices: int, message: str) -> None:
    from hf_sam.distributed import require_supported

    with pytest.raises(ValueError, match=message):
        require_supported(backend, devices=devices, optimizer="sgd", params=[])


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
