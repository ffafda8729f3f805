"""Every method against the papers' equations, limit cases, passes; what is never seen."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracles
import pytest
import scenarios
import torch
from cases import (
    Draws,
    Recorder,
    build,
    make_trainer,
)
from counters import CountPasses
from method_table import AVERAGES, METHOD_TABLE, RHO, TABLE, momentum, settings_of
from observers import fingerprint
from scenarios import PLAIN
from torch import Tensor
from trajectory import FLOAT64, LR, STEPS
from transformers import TrainerCallback

from hf_sam.ascent.methods import method_of
from hf_sam.ascent.schedule import coin

MODELS = ["mlp", "dropout_and_batch_norm", "tied", "frozen"]


def trained_by_oracle(
    model: torch.nn.Module,
    windows: list[list[Any]],
    draws: list[Tensor],
    rule: Callable[..., Tensor],
    optimizer: str,
    average: Callable[[list[Tensor]], Tensor] | None,
) -> Tensor:
    gradient = oracles.flat_gradient(model)
    w, state, kept = oracles.flat_weights(model), {}, {}
    after = []
    for window, before in zip(windows, draws, strict=True):

        def at(v: Tensor, window: list[Any] = window, before: Tensor = before) -> Tensor:
            torch.set_rng_state(before)
            return sum(gradient(v, batch) for batch in window) / len(window)

        g = rule(at, w, state if rule is oracles.msam else kept, rho=RHO)
        if optimizer == "adamw":
            w = oracles.adamw(w, g, state, lr=0.01)
        else:
            w = oracles.sgd(w, g, state, lr=LR, momentum=0.9)
        after.append(w)
    return w if average is None else average(after)


def largest_error(
    model: torch.nn.Module,
    tmp_path: Path,
    row: str,
    *,
    optimizer: str = "sgd",
    accumulation: int = 1,
    **settings: Any,
) -> float:
    rule, average = METHOD_TABLE[row][1], AVERAGES.get(row)
    reference = copy.deepcopy(model).train()
    recorder, draws = Recorder(), Draws()
    trainer = make_trainer(
        model,
        tmp_path,
        recorder=recorder,
        gradient_accumulation_steps=accumulation,
        **{**momentum(optimizer), **settings},
    )
    trainer.add_callback(draws)
    trainer.train()
    batches = recorder.batches
    windows = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
    weights = trained_by_oracle(reference, windows[:STEPS], draws.states, rule, optimizer, average)
    difference = (oracles.flat_weights(model) - weights).abs() / weights.abs().max()
    return float(difference.max())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("model", MODELS)
@TABLE
def test_twenty_steps_equal_the_oracle(
    method: str, model: str, optimizer: str, tmp_path: Path
) -> None:
    settings = settings_of(method)
    error = largest_error(build(model), tmp_path, method, optimizer=optimizer, **settings)
    assert error < FLOAT64


@pytest.mark.parametrize("model", ["mlp", "dropout_and_batch_norm"])
@TABLE
def test_a_window_is_one_batch(method: str, model: str, tmp_path: Path) -> None:
    settings = settings_of(method)
    error = largest_error(
        build(model), tmp_path, method, accumulation=2, ascent_scope="global", **settings
    )
    assert error < FLOAT64


@TABLE
def test_passes_are_those_that_are_documented(method: str, tmp_path: Path) -> None:
    settings, extra = settings_of(method), METHOD_TABLE[method][2]
    kind = {**momentum("sgd"), **settings}
    trainer = make_trainer(build("mlp"), tmp_path, gradient_accumulation_steps=2, **kind)
    counter = CountPasses(trainer.model)
    trainer.train()
    assert counter.passes == 2 * (STEPS + extra)
    assert trainer.gradient_evaluations == STEPS + extra


# Settings that are SAM, or the base optimizer, to the bit.
LIMITS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"method": "gsam", "method_args": "alpha=0"}, {}),
    ({"method": "wsam", "method_args": "gamma=0.5"}, {}),
    ({"method": "wsam", "method_args": "gamma=0"}, {"rho": 0.0}),
    ({"method": "looksam", "ascent_interval": 1}, {}),
    ({"method": "looksam", "method_args": "alpha=0", "ascent_interval": 4}, {"ascent_interval": 4}),
    ({"method": "friendly_sam", "method_args": "sigma=0"}, {}),
    ({"method": "vasso", "method_args": "theta=1"}, {}),
    ({"method": "rst", "method_args": "p=1"}, {}),
    ({"method": "rst", "method_args": "p=0"}, {"rho": 0.0}),
    ({"method": "le_sam", "method_args": "sigma=inf"}, {}),
    ({"method": "msam", "rho": 0.0}, {"rho": 0.0}),
    ({"method": "s2sam", "rho": 0.0}, {"rho": 0.0}),
    ({"ascent_fraction": 1.0}, {}),
    ({"ascent_interval": 1}, {}),
    ({"max_overhead": 2.0}, {}),
    ({"max_overhead": 1.25}, {"ascent_fraction": 0.25}),
]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("settings", "limit"), LIMITS, ids=[str(s) for s, _ in LIMITS])
def test_limit_cases_to_the_bit(
    settings: dict[str, Any], limit: dict[str, Any], accumulation: int, tmp_path: Path
) -> None:
    weights = []
    for kind in (settings, limit):
        model = build("dropout_and_batch_norm")
        scope = {} if accumulation == 1 else {"ascent_scope": "global"}
        settings = {"rho": RHO, **momentum("sgd"), **scope, **kind}
        make_trainer(model, tmp_path, gradient_accumulation_steps=accumulation, **settings).train()
        weights.append(fingerprint(model))
    assert weights[0] == weights[1]
    plain = build("dropout_and_batch_norm")
    make_trainer(
        plain, tmp_path, gradient_accumulation_steps=accumulation, **{**momentum("sgd"), **PLAIN}
    ).train()
    assert (weights[0] == fingerprint(plain)) == (limit.get("rho") == 0.0)


@TABLE
def test_resumed_is_bit_for_bit(method: str, tmp_path: Path) -> None:
    settings = {**momentum("sgd"), **settings_of(method)}
    assert scenarios.resumed_differs(None, tmp_path / "run", **settings) == []


class LooksAtWeights(TrainerCallback):
    """Evaluates nothing: notes the weights at every event, by the base optimizer's steps."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bytes]] = []

    def note(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.seen.append((state.global_step, oracles.flat_weights(model).numpy().tobytes()))

    on_step_begin = on_substep_end = on_pre_optimizer_step = on_step_end = on_log = note


@pytest.mark.parametrize("method", ["msam", "s2sam"])
def test_weights_are_never_seen_perturbed(method: str, tmp_path: Path) -> None:
    """Between two optimizer steps all events see the same weights: those after the step."""
    watcher = LooksAtWeights()
    settings = {**momentum("sgd"), **settings_of(method)}
    trainer = make_trainer(
        build("dropout_and_batch_norm"),
        tmp_path,
        gradient_accumulation_steps=2,
        logging_steps=1,
        **settings,
    )
    trainer.add_callback(watcher)
    trainer.train()
    weights = {step: {seen for at, seen in watcher.seen if at == step} for step in range(1, STEPS)}
    assert all(len(seen) == 1 for seen in weights.values())


def test_the_coin_is_fair_and_the_same_for_all() -> None:
    tosses = [coin(seed, t, 0.3) for seed in range(20) for t in range(500)]
    assert tosses == [coin(seed, t, 0.3) for seed in range(20) for t in range(500)]
    assert abs(sum(tosses) / len(tosses) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / len(tosses))
    assert method_of("rst", "p=0.3").probability == 0.3


@TABLE
def test_rho_zero_after_a_method_is_the_plain_trainer(method: str, tmp_path: Path) -> None:
    model, settings = build("mlp"), {**momentum("sgd"), "max_steps": 6}
    trainer = make_trainer(model, tmp_path, **settings, **settings_of(method))
    trainer.train()
    plain = make_trainer(copy.deepcopy(model), tmp_path, **settings, **PLAIN)
    trainer.args.rho, trainer.args.weight_average = 0.0, None
    trainer.optimizer = trainer.lr_scheduler = None
    for again in (trainer, plain):
        torch.manual_seed(7)
        again.train()
    assert fingerprint(model) == fingerprint(plain.model)
    assert not trainer._ascent.memory


def test_the_loss_budget_follows_the_schedule(tmp_path: Path) -> None:
    """Where sigma binds: the radius of step t is sigma (1 - t / 20) / ||g||."""
    model = build("mlp")
    gradient, recorder = oracles.flat_gradient(copy.deepcopy(model).train()), Recorder()
    w = oracles.flat_weights(model)
    settings = {"method": "le_sam", "method_args": "sigma=0.05", "rho_schedule": "linear"}
    make_trainer(model, tmp_path, recorder=recorder, rho=100.0, **settings).train()
    for step, batch in enumerate(recorder.batches[:STEPS]):
        g = gradient(w, batch)
        radius = 0.05 * (1 - step / STEPS) / float(g.norm())
        w = w - LR * gradient(w + radius * oracles.unit(g), batch)
    torch.testing.assert_close(oracles.flat_weights(model), w, rtol=0, atol=1e-10)


def test_smoothing_of_what_is_trained_later_begins_with_its_own_first_gradient() -> None:
    vasso, memory = method_of("vasso", "theta=0.25"), {}
    vasso.direction(["w", "v"], [torch.tensor([4.0]), None], 1.0, memory)
    found = vasso.direction(["w", "v"], [torch.tensor([8.0]), torch.tensor([3.0])], 1.0, memory)
    assert [float(d) for d in found] == [5.0, 3.0]
    found = vasso.direction(["w", "v"], [torch.tensor([5.0]), torch.tensor([7.0])], 1.0, memory)
    assert [float(d) for d in found] == [5.0, 4.0]


def test_smoothing_begins_with_the_first_gradient_that_is_finite() -> None:
    """A gradient that overflows under a gradient scaler is as if it had not been."""
    vasso, memory = method_of("vasso", "theta=0.25"), {}
    gradients = [torch.tensor([math.inf, 1.0]), torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])]
    for scale, g, expected in zip(
        (4.0, 2.0, 2.0), gradients, (None, [1.5, 2.0], [1.25, 1.5]), strict=True
    ):
        (d,) = vasso.direction(["w"], [g.clone()], scale, memory)
        if expected is not None:
            torch.testing.assert_close(d, torch.tensor(expected))
