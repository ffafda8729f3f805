"""The Hessian's measures against a dense one, in float64, and what they leave behind."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import CLASSES, build, examples
from measured import batches, dense_hessian, pairs_of_images
from tiny_transformers import vit
from torch import Tensor, nn

from hf_sam.diagnostics import hessian, measuring
from hf_sam.diagnostics.lanczos import lanczos

TINY = {"trace_probes": 0, "progress": False}
MODELS = ("mlp", "batch_norm", "dropout", "tied", "frozen")


@pytest.mark.parametrize("name", MODELS)
def test_eigenvalues_are_those_of_the_dense_matrix(name: str) -> None:
    """1e-6 is asked for; ARPACK at its own accuracy leaves rounding errors."""
    model = build(name)
    expected = torch.linalg.eigvalsh(dense_hessian(model)).flip(0).numpy()
    found = hessian(model, batches(16, 20, 12), tolerance=0, **TINY)
    np.testing.assert_allclose(found.eigenvalues, expected[:5], atol=1e-10)
    assert found.lambda_max == found.eigenvalues[0]
    assert found.lambda_ratio == pytest.approx(expected[0] / expected[4], rel=1e-9)
    assert found.setup.parameters == len(expected)


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(36, CLASSES)
    ).double()


def test_eigenvalues_of_a_convolution() -> None:
    torch.manual_seed(0)
    model = convolution()
    found = hessian(model, pairs_of_images(), tolerance=0, **TINY)
    expected = torch.linalg.eigvalsh(dense_hessian(model, pairs_of_images())).flip(0).numpy()
    np.testing.assert_allclose(found.eigenvalues, expected[:5], atol=1e-10)


def test_default_tolerance_is_kept() -> None:
    model = build("mlp")
    expected = torch.linalg.eigvalsh(dense_hessian(model)).flip(0).numpy()
    found = hessian(model, batches(48), **TINY)
    np.testing.assert_allclose(found.eigenvalues, expected[:5], rtol=1e-3)


def test_batches_and_memory_format_do_not_matter() -> None:
    torch.manual_seed(0)
    model = convolution()
    one = hessian(model, pairs_of_images(48), tolerance=0, **TINY)
    model.to(memory_format=torch.channels_last)
    other = hessian(model, pairs_of_images(7), tolerance=0, **TINY)
    np.testing.assert_allclose(one.eigenvalues, other.eigenvalues, atol=1e-10)
    assert one.setup.loss == pytest.approx(other.setup.loss, abs=1e-12)


def test_float32_weights_can_be_measured_in_float64() -> None:
    model = build("batch_norm", torch.float32)
    half = build("batch_norm", torch.bfloat16)
    exact = hessian(model.double(), batches(48), tolerance=0, **TINY)
    model.float()
    raised = hessian(model, batches(48), tolerance=0, dtype=torch.float64, **TINY)
    assert raised.setup.dtype == "float64" and next(model.parameters()).dtype == torch.float32
    np.testing.assert_allclose(raised.eigenvalues, exact.eigenvalues, atol=1e-6)  # of the cast
    assert hessian(half, batches(48), **TINY).setup.dtype == "float32"


def test_few_parameters_take_the_dense_matrix() -> None:
    """Of a sum of squares: eigenvalues by hand."""
    model = nn.Linear(2, 1, bias=False).double()
    x = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    found = hessian(model, [x], loss, trace_probes=3, density_probes=2, progress=False)
    np.testing.assert_allclose(found.eigenvalues, [9.0, 1.0], atol=1e-12)
    assert found.lambda_ratio is None
    assert found.trace is not None and found.trace.mean == pytest.approx(10.0)
    assert found.density is not None and len(found.density.density) == 1024


@pytest.mark.parametrize("name", ["mlp", "tied", "frozen"])
def test_density_integrates_to_one_and_has_the_moments_of_the_spectrum(name: str) -> None:
    model = build(name)
    exact = torch.linalg.eigvalsh(dense_hessian(model)).numpy()
    found = hessian(model, batches(48), density_probes=60, density_steps=40, **TINY).density
    assert found is not None
    x, density = found.eigenvalues, found.density
    assert np.trapezoid(density, x) == pytest.approx(1.0, abs=1e-6)  # tails beyond 6 deviations
    mean = np.trapezoid(density * x, x)
    # of z H z / z z for Gaussian z in n dimensions, over 60 of them
    spread = np.sqrt(2 * np.square(exact).mean() / len(exact) / 60)
    assert abs(mean - exact.mean()) < 4 * spread
    second = np.trapezoid(density * np.square(x), x) - found.width**2
    assert second == pytest.approx(np.square(exact).mean(), rel=0.25)


def test_lanczos_is_exact_after_as_many_steps_as_dimensions() -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((12, 12))
    matrix += matrix.T
    nodes, weights = lanczos(lambda v: matrix @ v, random.standard_normal(12), 30)
    np.testing.assert_allclose(nodes, np.linalg.eigvalsh(matrix), atol=1e-10)
    assert weights.sum() == pytest.approx(1.0)


def test_lanczos_stops_where_the_space_is_exhausted() -> None:
    nodes, weights = lanczos(lambda v: 3.0 * v, np.ones(10), 5)
    np.testing.assert_allclose(nodes, [3.0])
    np.testing.assert_allclose(weights, [1.0])


def test_trace_lies_in_its_interval() -> None:
    """Of 100 seeds 95 are expected to; fewer than 90 would happen once in 100 trials."""
    model = build("mlp")
    exact = float(dense_hessian(model).trace())
    hits = 0
    for seed in range(100):
        found = hessian(
            model, batches(48), top_k=1, tolerance=1, trace_probes=30, seed=seed, progress=False
        ).trace
        assert found is not None
        hits += abs(found.mean - exact) <= found.half_width
    assert hits >= 90


def test_attention_takes_the_kernel_with_second_derivatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = vit(0.0).eval()
    data = [{"pixel_values": torch.randn(4, 3, 8, 8), "labels": torch.arange(4)}]
    before = torch.backends.cuda.flash_sdp_enabled()
    assert model.config._attn_implementation == "sdpa"
    found = hessian(model, data, top_k=1, dtype=torch.float64, **TINY)
    eager = vit(0.0).eval()
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    expected = hessian(eager, data, top_k=1, dtype=torch.float64, **TINY)
    assert found.lambda_max == pytest.approx(expected.lambda_max, rel=1e-6)
    assert torch.backends.cuda.flash_sdp_enabled() == before


class NoSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2 * ctx.saved_tensors[0]


def squared(model: nn.Module, batch: Any) -> Tensor:
    return NoSecondDerivative.apply(model(batch[0])).square().mean()


def infinite_curvature(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - model(batch[0]).detach()).abs().pow(1.5).mean()


@pytest.mark.parametrize(
    ("loss", "message"),
    [(squared, "second derivatives"), (infinite_curvature, "Hessian must be finite")],
)
def test_what_has_no_hessian_is_said(
    loss: Callable[[nn.Module, Any], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        hessian(convolution(), pairs_of_images(), loss, progress=False)


@pytest.mark.parametrize(
    "bad",
    [
        {"top_k": 0},
        {"trace_probes": -1},
        {"density_probes": -1},
        {"density_steps": 1},
        {"tolerance": -1},
    ],
)  # fmt: skip
def test_bad_numbers_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        hessian(build("mlp"), batches(48), progress=False, **bad)


def test_a_loss_without_curvature_has_eigenvalues_of_zero() -> None:
    def linear(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0].flatten(1)).mean()

    found = hessian(nn.Linear(192, 2).double(), pairs_of_images(), linear, progress=False)
    np.testing.assert_allclose(found.eigenvalues, 0, atol=1e-12)


def test_products_are_counted() -> None:
    with measuring(build("mlp"), batches(48)) as objective:
        product = sys.modules["hf_sam.diagnostics.hessian"].Product(objective)
        product(np.ones(product.size))
    assert product.count == 1
    found = hessian(build("mlp"), batches(48), trace_probes=3, density_probes=2, density_steps=5,
                    progress=False)  # fmt: skip
    assert found.products >= 3 + 10 + 10


@pytest.mark.external
def test_agrees_with_curvlinops() -> None:
    from curvlinops import HessianLinearOperator

    model = build("mlp")
    whole = {k: torch.stack([e[k] for e in examples()]) for k in ("x", "labels")}
    forward = model.body
    params = [p for p in forward.parameters() if p.requires_grad]
    data = [(whole["x"], whole["labels"])]
    operator = HessianLinearOperator(forward, nn.CrossEntropyLoss(), params, data)
    n = sum(p.numel() for p in params)
    vector = torch.randn(n, dtype=torch.float64)
    with measuring(model, batches(16, 20, 12)) as objective:
        product = sys.modules["hf_sam.diagnostics.hessian"].Product(objective)
        np.testing.assert_allclose(product(vector.numpy()), operator @ vector, atol=1e-12)
