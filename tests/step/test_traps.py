"""Where other implementations break: each test fails on the naive SAM of `naive.py`.

The numbers are those of the traps that were collected from public implementations: restoring (1-4),
a floor (8), accumulation (14, 15, 18), statistics and draws (19, 20), state (21, 22).
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import build, make_trainer
from naive import NaiveSAMTrainer
from single_steps import (
    FailsLater,
    batch,
    buffers,
    equal,
    fail_with,
    overflow,
    step,
    weights,
)
from torch import Tensor, nn

from hf_sam.config import ASCENT_SCOPES

Kind = dict[str, Any]

fails = pytest.mark.xfail(strict=True, raises=AssertionError)
NAIVE = pytest.param({"trainer": NaiveSAMTrainer}, marks=fails, id="naive")
SCOPED = [pytest.param({"ascent_scope": scope}, id=scope) for scope in ASCENT_SCOPES]
both = pytest.mark.parametrize("kind", [*SCOPED, NAIVE])
scoped = pytest.mark.parametrize("kind", SCOPED)


@both
def test_2_a_step_at_learning_rate_zero_changes_no_bit(kind: Kind, tmp_path: Path) -> None:
    model = build("mlp", torch.float32)
    before = weights(model)
    make_trainer(model, tmp_path, **kind, dtype=torch.float32, learning_rate=0.0).train()
    assert equal(weights(model), before)


@both
def test_2_an_overflow_in_the_clean_pass_leaves_the_weights(kind: Kind, tmp_path: Path) -> None:
    model = build("mlp", torch.float32)
    before = weights(model)
    trainer = make_trainer(FailsLater(model, 1, overflow), tmp_path, **kind)
    step(trainer, batch())
    assert equal(weights(model), before)


@scoped
def test_1_the_weights_keep_their_storage(kind: Kind, tmp_path: Path) -> None:
    model = build("mlp", torch.float32)
    before = [p.data_ptr() for p in model.parameters()]
    step(make_trainer(model, tmp_path, **kind), batch())
    assert [p.data_ptr() for p in model.parameters()] == before


@both
def test_3_parameters_of_the_clean_pass_alone_come_back(kind: Kind, tmp_path: Path) -> None:
    """A layer that the perturbed pass skips has an epsilon, but no gradient afterwards."""
    model = build("sometimes_used", torch.float32)
    skip = FailsLater(model, 2, lambda model, x: -x.abs())  # x[0, 0] < 0 skips the layer
    before = weights(model)
    inputs = batch()
    inputs["x"] = inputs["x"].abs()
    trainer = make_trainer(skip, tmp_path, **kind)
    step(trainer, inputs)
    assert equal(weights(model), before)


@both
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("call", [1, 2], ids=["clean pass", "perturbed pass"])
def test_4_an_exception_leaves_the_model_as_before_the_step(
    call: int, error: type[BaseException], kind: Kind, tmp_path: Path
) -> None:
    model = build("batch_norm", torch.float32)
    before = weights(model), buffers(model)
    trainer = make_trainer(FailsLater(model, call, fail_with(error)), tmp_path, **kind)
    with pytest.raises(error):
        step(trainer, batch())
    assert equal(weights(model), before[0])
    assert equal(buffers(model), before[1])


@scoped
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_4_an_exception_anywhere_in_a_window(call: int, kind: Kind, tmp_path: Path) -> None:
    """The model is as before the window, and the next one counts nothing of it."""
    halves = [batch(16)[key].split(8) for key in ("x", "labels")]
    window = [{"x": x, "labels": labels} for x, labels in zip(*halves, strict=True)]
    model, fresh = build("batch_norm", torch.float32), build("batch_norm", torch.float32)
    fault = FailsLater(model, call, fail_with(KeyboardInterrupt))
    trainer = make_trainer(fault, tmp_path, gradient_accumulation_steps=2, **kind)
    other = make_trainer(fresh, tmp_path, gradient_accumulation_steps=2, **kind)
    before = weights(model), buffers(model)
    trainer.get_batch_samples(iter(window), 2, trainer.args.device)
    with pytest.raises(KeyboardInterrupt):
        for inputs in window:
            step(trainer, inputs)
    assert equal(weights(model), before[0])
    assert equal(buffers(model), before[1])
    if kind["ascent_scope"] != "micro_batch" and call <= 2:
        assert all(p.grad is None for p in model.parameters())
    model.zero_grad()
    fault.call = 99
    trainer.get_batch_samples(iter(window), 2, trainer.args.device)
    for inputs in window:
        step(trainer, inputs)
        step(other, inputs)
    assert equal([p.grad for p in model.parameters()], [p.grad for p in fresh.parameters()])
    assert equal(buffers(model), buffers(fresh))


@both
def test_8_a_zero_gradient_gives_a_zero_perturbation(kind: Kind, tmp_path: Path) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": (0.0 * self.w).sum()}

    model = Constant()
    trainer = make_trainer(model, tmp_path, **kind)
    step(trainer, batch())
    assert not model.w.grad.any()
    assert torch.equal(model.w, torch.ones(3))


@pytest.mark.parametrize("kind", [SCOPED[0], NAIVE])
def test_14_all_micro_batches_of_the_window_count(kind: Kind, tmp_path: Path) -> None:
    """Two micro-batches leave the mean of the gradients that each leaves alone."""
    inputs = batch(16, torch.float64)
    halves = [{k: v[i : i + 8] for k, v in inputs.items()} for i in (0, 8)]
    alone = []
    for half in halves:
        trainer = make_trainer(build("mlp"), tmp_path, **kind)
        step(trainer, half)
        alone.append([p.grad.clone() for p in trainer.model.parameters()])
    trainer = make_trainer(build("mlp"), tmp_path, **kind, gradient_accumulation_steps=2)
    for half in halves:
        step(trainer, half)
    for p, first, second in zip(trainer.model.parameters(), *alone, strict=True):
        torch.testing.assert_close(p.grad, (first + second) / 2, rtol=1e-12, atol=1e-15)


@scoped
def test_15_every_micro_batch_of_the_window_is_passed_twice(kind: Kind, tmp_path: Path) -> None:
    model = build("mlp")
    seen: list[float] = []
    model.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(float(inputs["x"][0, 0])), with_kwargs=True
    )
    trainer = make_trainer(model, tmp_path, gradient_accumulation_steps=3, **kind)
    rows = batch(24, torch.float64)
    for i in range(3):
        step(trainer, {key: value[8 * i : 8 * i + 8] for key, value in rows.items()})
    a, b, c = rows["x"][::8, 0].tolist()
    own = kind["ascent_scope"] == "micro_batch"
    assert seen == ([a, a, b, b, c, c] if own else [a, b, c, a, b, c])


@both
def test_18_leftover_gradients_stay_out_of_the_clean_gradient(kind: Kind, tmp_path: Path) -> None:
    """They are part of the descent gradient, as in the plain Trainer, and turn no epsilon."""
    inputs = batch(dtype=torch.float64)
    fresh = make_trainer(build("mlp"), tmp_path, **kind)
    step(fresh, inputs)
    trainer = make_trainer(build("mlp"), tmp_path, **kind)
    for p in trainer.model.parameters():
        p.grad = torch.full_like(p, 3.0)
    step(trainer, inputs)
    for p, q in zip(trainer.model.parameters(), fresh.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad + 3.0, rtol=1e-12, atol=1e-15)


@both
@pytest.mark.parametrize("spoil", [False, True], ids=["finite", "perturbed pass overflows"])
def test_19_running_statistics_come_from_the_clean_pass(
    spoil: bool, kind: Kind, tmp_path: Path
) -> None:
    model, plain = build("batch_norm", torch.float32), build("batch_norm", torch.float32)
    plain.train()(**batch())
    trainer = make_trainer(FailsLater(model, 2, overflow) if spoil else model, tmp_path, **kind)
    step(trainer, batch())
    assert equal(buffers(model), buffers(plain))


@both
def test_20_both_passes_drop_the_same_units(kind: Kind, tmp_path: Path) -> None:
    model = build("dropout", torch.float32)
    kept: list[Tensor] = []
    model.body[3].register_forward_hook(lambda layer, args, out: kept.append(out != 0))
    trainer = make_trainer(model, tmp_path, **kind)
    step(trainer, batch())
    assert len(kept) == 2
    assert torch.equal(*kept)


@scoped
def test_20_every_micro_batch_of_a_window_keeps_its_masks(kind: Kind, tmp_path: Path) -> None:
    model = build("dropout", torch.float32)
    kept: list[Tensor] = []
    model.body[3].register_forward_hook(lambda layer, args, out: kept.append(out != 0))
    trainer = make_trainer(model, tmp_path, gradient_accumulation_steps=2, **kind)
    step(trainer, batch())
    step(trainer, batch())
    first, second = ((0, 1), (2, 3)) if kind["ascent_scope"] == "micro_batch" else ((0, 2), (1, 3))
    assert torch.equal(kept[first[0]], kept[first[1]])
    assert torch.equal(kept[second[0]], kept[second[1]])
    assert not torch.equal(kept[first[0]], kept[second[0]])


@both
def test_20_numpy_and_python_draws_repeat_too(kind: Kind, tmp_path: Path) -> None:
    import random

    import numpy as np

    draws: list[tuple[float, float]] = []
    model = build("mlp", torch.float32)
    model.register_forward_pre_hook(
        lambda *_: draws.append((float(np.random.rand()), random.random()))
    )
    trainer = make_trainer(model, tmp_path, **kind)
    step(trainer, batch())
    step(trainer, batch())
    assert draws[0] == draws[1] != draws[2] == draws[3]


def test_frozen_parameters_are_left_alone(tmp_path: Path) -> None:
    model = build("frozen", torch.float32)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda *_: seen.append(model.body[0].weight.clone()))
    step(make_trainer(model, tmp_path), batch())
    assert torch.equal(*seen)
    assert model.body[0].weight.grad is None


def test_tied_weights_move_once(tmp_path: Path) -> None:
    model = build("tied")
    seen: list[Tensor] = []
    model.register_forward_pre_hook(
        lambda *_: seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    )
    step(make_trainer(model, tmp_path, rho=0.3), batch(dtype=torch.float64))
    assert float((seen[1] - seen[0]).norm()) == pytest.approx(0.3)


def test_21_22_no_state_and_no_wrapper(tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path, optim="sgd", max_steps=3)
    trainer.train()
    assert type(trainer.optimizer.optimizer) is torch.optim.SGD
    assert trainer.lr_scheduler.optimizer.param_groups is trainer.optimizer.optimizer.param_groups
    assert all(set(state) <= {"momentum_buffer"} for state in trainer.optimizer.state.values())
