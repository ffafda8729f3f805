"""Loss surfaces, the line between two models, and the scan over rho."""

from typing import Any

import numpy as np
import pytest
import torch
from cases import build
from measured import batches, flat_loss
from torch import nn

from hf_sam.diagnostics import landscape, line_between, measuring, rho_scan
from hf_sam.diagnostics.directions import filter_normalised, gaussians

QUIET: dict[str, Any] = {"progress": False}


def direction_of(model: nn.Module, seed: int = 0) -> tuple[Any, Any]:
    with measuring(model, batches(48)) as objective:
        drawn = next(gaussians(objective.weights, seed=seed))
        return filter_normalised(drawn, objective.weights), objective.weights


def test_directions_have_the_norms_of_the_filters() -> None:
    torch.manual_seed(0)
    weights = {"conv": torch.randn(4, 3, 2, 2), "linear": torch.randn(5, 7), "bias": torch.randn(5)}
    weights["conv"][1] = 0  # a filter of zeros does not move
    found = filter_normalised(next(gaussians(weights, seed=1)), weights)
    for name in ("conv", "linear"):
        expected = weights[name].flatten(1).norm(dim=1)
        torch.testing.assert_close(found[name].flatten(1).norm(dim=1), expected)
    assert not found["bias"].any()


@pytest.mark.parametrize("name", ["mlp", "batch_norm", "tied", "frozen"])
def test_centre_is_the_loss(name: str) -> None:
    model = build(name)
    loss, w = flat_loss(model)
    found = landscape(model, batches(16, 32), points=5, **QUIET)
    assert found.losses.shape == (5, 5) and found.y is not None
    assert found.x[2] == found.y[2] == 0
    assert found.losses[2, 2] == found.setup.loss == pytest.approx(float(loss(w)), abs=1e-12)


def test_points_are_the_losses_along_the_directions() -> None:
    model = build("mlp")
    loss, w = flat_loss(model)
    found = landscape(model, batches(48), dimensions=1, points=5, span=0.5, seed=3, **QUIET)
    direction = torch.cat([x.reshape(-1) for x in direction_of(model, seed=3)[0].values()])
    expected = [float(loss(w + step * direction)) for step in np.linspace(-0.5, 0.5, 5)]
    np.testing.assert_allclose(found.losses, expected, atol=1e-12)
    assert found.lengths == pytest.approx((float(direction.norm()),))


def test_two_models_get_the_same_draws() -> None:
    """Up to the norms of their filters: side by side, the pictures show the same directions."""
    one, other = build("mlp", seed=0), build("mlp", seed=1)
    a, b = direction_of(one)[0]["body.0.weight"], direction_of(other)[0]["body.0.weight"]
    cosines = torch.cosine_similarity(a, b, dim=1)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


def test_ascent_axis_goes_along_the_gradient() -> None:
    model = build("mlp")
    loss, w = flat_loss(model)
    g = torch.func.grad(loss)(w)
    random = landscape(model, batches(48), dimensions=1, points=3, **QUIET)
    found = landscape(model, batches(48), dimensions=1, points=3, ascent=True, **QUIET)
    length = random.lengths[0]
    expected = [float(loss(w + step * length * g / g.norm())) for step in (-1, 0, 1)]
    np.testing.assert_allclose(found.losses, expected, atol=1e-12)
    assert "gradient" in found.axes[0]


def test_line_between_two_models() -> None:
    """The ends are the models with their own running statistics; beyond them those stay."""
    one, other = build("batch_norm", seed=0), build("batch_norm", seed=1)
    other.train()(torch.randn(20, 6, dtype=torch.float64) * 3 + 1, torch.zeros(20).long())
    found = line_between(one, other, batches(16, 32), points=7, margin=0.5, **QUIET)
    ends = [float(flat_loss(model)[0](flat_loss(model)[1])) for model in (one, other)]
    at = dict(zip(found.x.tolist(), found.losses.tolist(), strict=True))
    assert (at[0.0], at[1.0]) == pytest.approx(ends, abs=1e-12)
    assert min(at) == -0.5 and max(at) == 1.5 and np.isfinite(found.losses).all()
    again = line_between(one, other.state_dict(), batches(16, 32), points=7, margin=0.5, **QUIET)
    np.testing.assert_array_equal(again.losses, found.losses)


@pytest.mark.parametrize("other", [lambda: build("tied"), lambda: nn.Linear(2, 2)])
def test_another_architecture_is_refused(other: Any) -> None:
    with pytest.raises(ValueError, match="of one architecture"):
        line_between(build("mlp"), other(), batches(48), **QUIET)


def test_an_architecture_that_has_more_is_refused_too() -> None:
    more = build("mlp")
    more.extra = nn.Linear(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="of one architecture, got for `extra"):
        line_between(build("mlp"), more, batches(48), **QUIET)
    with pytest.raises(ValueError, match="a model or its `state_dict"):
        line_between(build("mlp"), "a/path", batches(48), **QUIET)


def test_a_direction_of_zeros_is_refused() -> None:
    model = build("mlp")
    for param in model.parameters():
        param.requires_grad_(param.dim() == 1)
    with pytest.raises(ValueError, match="direction of zeros"):
        landscape(model, batches(48), **QUIET)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"dimensions": 3}, "dimensions"),
        ({"points": 4}, "odd"),
        ({"span": 0.0}, "span"),
        ({"span": float("inf")}, "span"),
    ],
)
def test_bad_grids_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        landscape(build("mlp"), batches(48), **QUIET, **bad)


def test_overflow_far_away_is_a_point_like_others() -> None:
    found = landscape(
        build("mlp", torch.float32), batches(48, dtype=torch.float32), dimensions=1, points=3,
        span=1e38, **QUIET,
    )  # fmt: skip
    assert np.isfinite(found.losses[1]) and not np.isfinite(found.losses).all()


def test_rho_scan_is_the_definition() -> None:
    """Each batch with its own perturbation, as in training; means weighted by examples."""
    model, sizes, rhos = build("mlp"), (16, 32), (0.1, 1.0)
    found = rho_scan(model, batches(*sizes), rhos=rhos, **QUIET)
    for i, rho in enumerate(rhos):
        losses, cosines = [], []
        for batch in batches(*sizes):
            loss, w = flat_loss(model, [(batch["x"], batch["labels"])], forward=model.body)
            g = torch.func.grad(loss)(w)
            moved = w + rho * g / g.norm()
            losses.append(float(loss(moved)))
            cosines.append(float(torch.cosine_similarity(g, torch.func.grad(loss)(moved), dim=0)))
        shares = [size / 48 for size in sizes]
        assert found.perturbed_losses[i] == pytest.approx(np.dot(shares, losses), abs=1e-12)
        assert found.cosines[i] == pytest.approx(np.dot(shares, cosines), abs=1e-12)


class Turning(nn.Module):
    """L = w^2 - u^2 with a gradient that turns at a known rho."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 0.2], dtype=torch.float64))


def saddle(model: nn.Module, batch: Any) -> torch.Tensor:
    return model.w[0] ** 2 / 2 - 2 * model.w[1] ** 2


def test_recommended_is_the_largest_rho_within_45_degrees() -> None:
    data = [torch.zeros(2, 1)]
    g = np.array([1.0, -0.8])
    unit = g / np.linalg.norm(g)
    rhos = (0.1, 0.3, 1.0, 3.0, 10.0)
    moved = [np.array([1.0, 0.2]) + rho * unit for rho in rhos]
    turned = [np.array([w[0], -4 * w[1]]) for w in moved]
    cosines = [t @ g / np.linalg.norm(t) / np.linalg.norm(g) for t in turned]
    found = rho_scan(Turning(), data, saddle, rhos=rhos, **QUIET)
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-12)
    expected = [rho for rho, cosine in zip(rhos, cosines, strict=True) if cosine >= 0.7]
    assert found.recommended == (max(expected) if expected else None)


def test_says_when_no_rho_or_every_rho_will_do() -> None:
    flat = rho_scan(build("mlp"), batches(48), rhos=[1e-4, 1e-3], **QUIET)
    assert flat.recommended == 1e-3 and "scan larger ones too" in flat.reason
    none = rho_scan(build("mlp"), batches(48), rhos=[1e3], **QUIET)
    assert none.recommended is None and "scan smaller ones" in none.reason


def test_says_when_there_is_nothing_to_ascend() -> None:
    def flat(model: nn.Module, batch: Any) -> torch.Tensor:
        return 0.0 * model(**batch)["loss"]

    found = rho_scan(build("mlp"), batches(48), flat, **QUIET)
    assert found.recommended is None and "nothing to ascend" in found.reason


@pytest.mark.parametrize("rhos", [[], [0.0], [-1.0], [float("inf")]])
def test_bad_rhos_are_refused(rhos: list[float]) -> None:
    with pytest.raises(ValueError, match="rhos"):
        rho_scan(build("mlp"), batches(48), rhos=rhos, **QUIET)
