"""Sharpness against closed forms and against the definition computed apart from the package."""

from typing import Any

import numpy as np
import pytest
import torch
from cases import build, examples
from measured import batches, flat_loss
from oracles import m_sharpness_rise
from torch import Tensor, nn

from hf_sam.diagnostics import sharpness

QUIET: dict[str, Any] = {"progress": False}


class Quadratic(nn.Module):
    """L(w) = w H w / 2 + b w, whatever the examples are."""

    def __init__(self, weights: Tensor, hessian: Tensor, slope: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(weights.clone())
        self.register_buffer("hessian", hessian)
        self.register_buffer("slope", slope)

    def forward(self, x: Tensor) -> Tensor:
        return self.w @ self.hessian @ self.w / 2 + self.slope @ self.w


def loss_of_quadratic(model: nn.Module, batch: Any) -> Tensor:
    return model(batch)


def random_quadratic(n: int = 30) -> Quadratic:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    w, slope = torch.randn(2, n, generator=generator, dtype=torch.float64)
    return Quadratic(w, root @ root.T / n, slope)


DATA = [torch.zeros(4, 1)]


def test_one_step_is_the_closed_form() -> None:
    """Rho ||g|| + rho^2 g H g / 2 ||g||^2."""
    model, rho = random_quadratic(), 0.7
    g = model.hessian @ model.w.detach() + model.slope
    expected = rho * g.norm() + rho**2 * (g @ model.hessian @ g) / (2 * g.norm() ** 2)
    found = sharpness(model, DATA, loss_of_quadratic, rho=rho, **QUIET)
    assert found.worst_case == pytest.approx(float(expected), rel=1e-12)


def largest_in_ball(g: Tensor, hessian: Tensor, rho: float) -> float:
    """Of g e + e H e / 2 over ||e|| <= rho: (mu - H) e = g with ||e|| = rho, mu by bisection."""
    eigenvalues, vectors = np.linalg.eigh(hessian.numpy())
    along = vectors.T @ g.numpy()
    low, high = eigenvalues[-1], eigenvalues[-1] + np.linalg.norm(along) / rho
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if np.linalg.norm(along / (mu - eigenvalues)) > rho else (low, mu)
    e = along / (high - eigenvalues)
    return float(along @ e + (eigenvalues * e) @ e / 2)


def test_projected_ascent_finds_the_largest_rise_of_a_quadratic() -> None:
    model, rho = random_quadratic(), 3.0
    g = (model.hessian @ model.w + model.slope).detach()
    expected = largest_in_ball(g, model.hessian, rho)
    found = sharpness(model, DATA, loss_of_quadratic, rho=rho, steps=300, **QUIET)
    assert found.worst_case < 0.99 * expected
    assert found.worst_case_steps == pytest.approx(expected, rel=1e-9)
    few = sharpness(model, DATA, loss_of_quadratic, rho=rho, steps=3, **QUIET)
    assert found.worst_case <= few.worst_case_steps <= found.worst_case_steps


def test_without_further_steps_both_are_one() -> None:
    found = sharpness(random_quadratic(), DATA, loss_of_quadratic, steps=0, **QUIET)
    assert found.worst_case == found.worst_case_steps


def test_average_is_half_the_trace() -> None:
    """sigma^2 trace(H) / 2 exactly, as the slope cancels; 400 draws leave 2 %."""
    model, sigma = random_quadratic(), 0.1
    expected = sigma**2 * float(model.hessian.trace()) / 2
    found = sharpness(
        model, DATA, loss_of_quadratic, sigma=sigma, directions=400, steps=0, **QUIET
    ).average
    assert found.n == 400
    assert abs(found.mean - expected) < 1.5 * found.half_width < 0.1 * expected


@pytest.mark.parametrize("name", ["mlp", "batch_norm", "dropout", "tied", "frozen"])
def test_rise_is_that_of_the_definition(name: str) -> None:
    model = build(name)
    loss, w = flat_loss(model)
    g = torch.func.grad(loss)(w)
    found = sharpness(model, batches(16, 20, 12), rho=0.3, **QUIET)
    assert found.setup.loss == pytest.approx(float(loss(w)), abs=1e-12)
    assert found.worst_case == pytest.approx(
        float(loss(w + 0.3 * g / g.norm()) - loss(w)), abs=1e-12
    )


def test_adaptive_scales_the_weights_of_asam() -> None:
    """T = |w| + 0.01 on weights and 1 on biases, as in ASAM's official code."""
    model = build("mlp")
    loss, w = flat_loss(model)
    g = torch.func.grad(loss)(w)
    t = torch.cat(
        [
            (p.detach().abs() + 0.01 if "weight" in n else torch.ones_like(p)).reshape(-1)
            for n, p in model.named_parameters()
        ]
    )
    step = 0.5 * t.square() * g / (t * g).norm()
    found = sharpness(model, batches(48), adaptive_rho=0.5, **QUIET)
    assert found.adaptive == pytest.approx(float(loss(w + step) - loss(w)), abs=1e-12)


@pytest.mark.parametrize("sizes", [(48,), (16, 20, 12), (5,) * 9 + (3,)])
def test_m_sharpness_is_the_mean_over_groups(sizes: tuple[int, ...]) -> None:
    """Groups of m in the loader's order, whatever its batches are; a last smaller group counts."""
    model = build("mlp")
    found = sharpness(model, batches(*sizes), rho=0.2, m=(1, 7, 16, 48), **QUIET)
    for m, rise in found.by_m.items():
        assert rise == pytest.approx(
            m_sharpness_rise(model, examples(), m=m, rho=0.2), abs=1e-12
        ), m
    assert found.by_m[48] == pytest.approx(found.worst_case, abs=1e-12)


def test_seed_determines_the_result() -> None:
    model = build("mlp")
    one, again, other = (sharpness(model, batches(48), seed=seed, **QUIET) for seed in (1, 1, 2))
    assert one == again and one.average != other.average


def test_max_batches_takes_the_first() -> None:
    model = build("mlp")
    found = sharpness(model, batches(16, 20, 12), max_batches=2, **QUIET)
    assert (found.setup.examples, found.setup.batches) == (36, 2)
    assert found == sharpness(model, batches(16, 20, 12)[:2], **QUIET)


@pytest.mark.parametrize(
    "bad",
    [{"rho": 0.0}, {"rho": float("nan")}, {"sigma": -1.0}, {"adaptive_rho": 0.0}, {"steps": -1},
     {"directions": 0}, {"max_batches": 0}],
)  # fmt: skip
def test_bad_numbers_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        sharpness(build("mlp"), batches(48), **{**QUIET, **bad})


@pytest.mark.parametrize("m", [0, 49])
def test_bad_m_is_refused(m: int) -> None:
    with pytest.raises(ValueError, match="`m` must be from 1 to 48, the number of examples, got"):
        sharpness(build("mlp"), batches(48), m=[m], **QUIET)


def test_an_overflow_on_the_way_ends_the_ascent() -> None:
    found = sharpness(build("mlp", torch.float32), batches(48, dtype=torch.float32), rho=1e30,
                      **QUIET)  # fmt: skip
    assert not np.isfinite(found.worst_case) or found.worst_case > 1e6
