"""What a measurement leaves behind: nothing. And what it refuses, with which message."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import build, vit
from measured import batches
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from hf_sam.diagnostics import (
    hessian,
    landscape,
    line_between,
    measuring,
    rho_scan,
    sharpness,
)

MEASUREMENTS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "sharpness": lambda m, b: sharpness(m, b, m=(4,), progress=False),
    "hessian": lambda m, b: hessian(m, b, trace_probes=2, density_probes=1, progress=False),
    "landscape": lambda m, b: landscape(m, b, points=3, progress=False),
    "ascent": lambda m, b: landscape(m, b, points=3, ascent=True, dimensions=1, progress=False),
    "line_between": lambda m, b: line_between(m, m.state_dict(), b, points=3, progress=False),
    "rho_scan": lambda m, b: rho_scan(m, b, progress=False),
}


def draws() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()


class Counts(nn.Module):
    """Counts its calls in a buffer, in eval mode too, and draws a mask there."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build("batch_norm")
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return self.body(x * torch.bernoulli(torch.full_like(x, 0.8)), labels)


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
@pytest.mark.parametrize("make", [lambda: build("dropout_and_batch_norm"), Counts])
def test_everything_is_as_it_was(
    measure: Callable[[nn.Module, Any], Any], make: Callable[[], nn.Module]
) -> None:
    model = make().train()
    next(model.modules()).eval()  # a mixture of modes
    list(model.modules())[2].eval()
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {n: (t, t.data_ptr(), t.clone(), t.grad) for n, t in tensors.items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    modes, state = [m.training for m in model.modules()], draws()
    with torch.no_grad():  # as in an evaluation
        measure(model, batches(24, 24))
    for name, (tensor, pointer, value, grad) in before.items():
        now = {**dict(model.named_parameters()), **dict(model.named_buffers())}[name]
        assert now is tensor and now.data_ptr() == pointer and now.grad is grad
        assert torch.equal(now, value), name
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [m.training for m in model.modules()] == modes
    after = draws()
    assert torch.equal(after[0], state[0]) and after[1:] == state[1:]


def test_draws_of_the_forward_pass_are_the_same_at_all_weights() -> None:
    """Or a loss near the weights would differ by its mask, not by the weights."""
    with measuring(Counts(), batches(48)) as objective:
        values = {objective.mean_loss(objective.weights) for _ in range(3)}
    assert len(values) == 1


def test_modes_return_after_an_error() -> None:
    model = build("dropout").train()

    def fails(model: nn.Module, batch: Any) -> Tensor:
        raise RuntimeError("out of memory")

    state = draws()
    with pytest.raises(RuntimeError, match="out of memory"):
        sharpness(model, batches(48), fails)
    assert all(module.training for module in model.modules())
    assert torch.equal(draws()[0], state[0])


def test_says_what_batch_norm_did() -> None:
    assert "running statistics" in sharpness(build("batch_norm"), batches(48)).setup.mode
    assert "no BatchNorm" in sharpness(build("mlp"), batches(48)).setup.mode
    whole = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 4)).double()
    pairs = [(b["x"], b["labels"]) for b in batches(48)]
    assert "of the batch" in sharpness(whole, pairs, progress=False).setup.mode


def test_shuffled_loaders_give_the_same_batches_for_a_seed() -> None:
    data = list(zip(batches(48)[0]["x"], batches(48)[0]["labels"], strict=True))
    loader = DataLoader(data, batch_size=8, shuffle=True)
    model = build("mlp").body
    one, again, other = (
        sharpness(model, loader, max_batches=2, seed=seed, progress=False) for seed in (1, 1, 2)
    )
    assert one == again and one.setup.loss != other.setup.loss


def test_compiled_and_wrapped_models_are_looked_through() -> None:
    model = build("mlp")
    plain = hessian(model, batches(48), trace_probes=0, progress=False)
    compiled = hessian(torch.compile(model), batches(48), trace_probes=0, progress=False)
    np.testing.assert_array_equal(compiled.eigenvalues, plain.eigenvalues)
    model.compile()
    in_place = hessian(model, batches(48), trace_probes=0, progress=False)
    np.testing.assert_array_equal(in_place.eigenvalues, plain.eigenvalues)
    assert DistributedDataParallel  # its `module` is taken by the same function of Accelerate


def test_transformers_models_are_measured_by_their_own_loss() -> None:
    model = vit(0.1).train()
    data = [{"pixel_values": torch.randn(4, 3, 8, 8), "labels": torch.arange(4)}]
    with torch.no_grad():
        expected = float(model.eval()(**data[0]).loss)
    assert sharpness(model.train(), data, progress=False).setup.loss == pytest.approx(expected)


def frozen_whole() -> nn.Module:
    return build("mlp").requires_grad_(False)


def diverged() -> nn.Module:
    model = build("mlp")
    model.body[0].weight.data.fill_(float("nan"))
    return model


def without_labels() -> list[dict[str, Tensor]]:
    return [{"x": b["x"]} for b in batches(48)]


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (frozen_whole, batches(48), "needs trainable parameters"),
        (lambda: build("mlp"), [], "data loader without any"),
        (diverged, batches(24, 24), "needs a finite loss, got nan on batch 0"),
        (lambda: build("mlp"), without_labels(), "put `labels` into the batches"),
        (lambda: build("mlp").to("meta"), batches(48), "on one device that computes, got meta"),
    ],
)
def test_what_cannot_be_measured_gets_one_message(
    measure: Callable[[nn.Module, Any], Any],
    model: Callable[[], nn.Module],
    data: Any,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(model(), data)


def test_a_loss_of_each_example_is_refused() -> None:
    def each(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["x"])["logits"].square().sum(dim=1)

    with pytest.raises(ValueError, match="must return a tensor of one number"):
        sharpness(build("mlp"), batches(48), each)
