"""The perturbation is the paper's, and the weights come back bit for bit."""

import math

import oracles
import pytest
import torch
from torch import Tensor, nn

from hf_sam import NORM_FLOOR, compute_perturbation, perturbed, take_gradients
from hf_sam.ascent.vectors import gradient_norm

NORMS = [1.01, 1.5, 2.0, 3.0, 20.0, math.inf]
Parameters = dict[str, Tensor]


def parameters(dtype: torch.dtype = torch.float64) -> Parameters:
    torch.manual_seed(0)
    shapes = {"a.weight": (4, 3), "a.bias": (4,), "norm.weight": (5,), "scale": ()}
    shapes |= {"wide.weight": (40, 30), "long": (2000,)}  # too large to be packed for a norm
    return {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}


def gradients(like: Parameters, factor: float = 1.0) -> list[Tensor]:
    torch.manual_seed(1)
    return [factor * torch.randn_like(p) for p in like.values()]


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.double().flatten() for t in tensors])


def asam_scale(params: Parameters, eta: float) -> Tensor:
    return flat([p.abs() + eta if "weight" in n else torch.ones_like(p) for n, p in params.items()])


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("factor", [1.0, 1e-3])
def test_equals_the_paper(p: float, adaptive: bool, factor: float) -> None:
    params = parameters()
    grads = gradients(params, factor)
    scale = asam_scale(params, 0.02) if adaptive else None
    expected = oracles.perturbation(flat(grads), rho=0.3, p=p, scale=scale)
    computed = compute_perturbation(
        params, grads, rho=0.3, adaptive=adaptive, eta=0.02, perturbation_norm=p
    )
    # float64; |x|^q with q = 101 multiplies the rounding error of the logarithm by 101
    torch.testing.assert_close(flat(computed), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, math.inf])
def test_norm_of_all_sizes_and_dtypes(order: float) -> None:
    torch.manual_seed(0)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    tensors = [100 * torch.randn(n).to(dtype) for n in (0, 1, 9, 3000) for dtype in dtypes]
    tensors.append(torch.randn(7, 5, 40, 2).to(memory_format=torch.channels_last))
    expected = torch.linalg.vector_norm(flat(tensors), order)
    norm = gradient_norm([None, *tensors], order)
    assert norm.dtype == torch.float32
    # accumulated in float32 over 20,000 entries
    torch.testing.assert_close(norm.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e6])
def test_has_norm_rho(p: float, adaptive: bool, factor: float) -> None:
    params = parameters(torch.float32)
    computed = compute_perturbation(
        params, gradients(params, factor), rho=0.3, adaptive=adaptive, perturbation_norm=p
    )
    scale = asam_scale(params, 0.01) if adaptive else 1.0
    norm = float(torch.linalg.vector_norm(flat(computed) / scale, p))
    # float32 entries carry 6e-8; q = 101 multiplies the relative error of x by 100
    assert norm == pytest.approx(0.3, rel=2e-5)


def test_quadratic_has_the_closed_form() -> None:
    """L = w'Aw/2: epsilon = rho Aw/||Aw||, so SAM's gradient is Aw + rho AAw/||Aw||."""
    a = torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64))
    w = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    (0.5 * w @ a @ w).backward()
    with perturbed([w], compute_perturbation({"w": w}, take_gradients([w]), rho=0.1)):
        (0.5 * w @ a @ w).backward()
    g = a @ w.detach()
    torch.testing.assert_close(w.grad, g + 0.1 * a @ g / g.norm(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("p", NORMS)
def test_zero_gradient_moves_nothing(p: float) -> None:
    params = parameters()
    zeros = [torch.zeros_like(x) for x in params.values()]
    computed = compute_perturbation(params, zeros, rho=0.3, perturbation_norm=p)
    assert not flat(computed).any()


def test_floor_bounds_the_scaling_of_a_vanishing_gradient() -> None:
    (computed,) = compute_perturbation(
        {"w": torch.ones(1, dtype=torch.float64)},
        [torch.tensor([NORM_FLOOR / 4], dtype=torch.float64)],
        rho=0.1,
    )
    assert float(computed) == pytest.approx(0.1 / 4)


def test_tiny_gradients_keep_their_direction_for_p_near_one() -> None:
    """|g|^q with q = 101 leaves the range of float32 unless g is scaled first."""
    (computed,) = compute_perturbation(
        {"w": torch.ones(2)}, [torch.tensor([3e-5, 1e-5])], rho=0.1, perturbation_norm=1.01
    )
    assert float(computed[0]) == pytest.approx(0.1, rel=1e-4)


def test_norm_of_bfloat16_gradients_is_accumulated_in_float32() -> None:
    grad = torch.full((4096,), 1.0, dtype=torch.bfloat16)
    grad[0] = 64.0
    (computed,) = compute_perturbation({"w": torch.zeros_like(grad)}, [grad.clone()], rho=1.0)
    expected = grad.double() / grad.double().norm()
    # one rounding to bfloat16's 8 bits an entry, none of the norm
    torch.testing.assert_close(computed.double(), expected, rtol=2**-8, atol=0)


def test_sparse_and_missing_gradients() -> None:
    dense = torch.tensor([[0.0, 3.0], [0.0, 4.0]])
    params = {"embedding.weight": torch.zeros(2, 2), "unused": torch.zeros(3)}
    computed = compute_perturbation(params, [dense.to_sparse(), None], rho=1.0)
    torch.testing.assert_close(computed[0], dense / 5)
    assert computed[1] is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.1, math.nan, math.inf])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype, value: float) -> None:
    params = parameters(dtype)
    before = {name: p.clone() for name, p in params.items()}
    places = {name: p.data_ptr() for name, p in params.items()}
    with perturbed(params.values(), [torch.full_like(p, value) for p in params.values()]):
        assert all(not torch.equal(p, before[name]) for name, p in params.items())
    assert all(torch.equal(p, before[name]) for name, p in params.items())
    assert {name: p.data_ptr() for name, p in params.items()} == places


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_come_back_after_an_exception(error: type[BaseException]) -> None:
    params = parameters()
    before = {name: p.clone() for name, p in params.items()}
    with pytest.raises(error), perturbed(params.values(), gradients(params)):
        raise error
    assert all(torch.equal(p, before[name]) for name, p in params.items())


def test_memory_format_survives() -> None:
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    with perturbed([weight], [torch.ones_like(weight)]):
        pass
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_perturbation_is_not_kept() -> None:
    """While the block runs, epsilon's memory must be free for the second pass."""
    import weakref

    weight, epsilon = torch.zeros(3), torch.ones(3)
    reference = weakref.ref(epsilon)
    holder = [epsilon]
    del epsilon
    with perturbed([weight], holder):
        holder.clear()
        assert reference() is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rho": -0.1}, "`rho` must be >= 0, got -0.1"),
        ({"rho": math.nan}, "`rho` must be >= 0, got nan"),
        ({"rho": math.inf}, "`rho` must be >= 0, got inf"),
        ({"rho": 0.1, "eta": -1.0}, "`eta` must be >= 0, got -1.0"),
        ({"rho": 0.1, "perturbation_norm": 1.0}, "`perturbation_norm` must be > 1, got 1.0"),
        ({"rho": 0.1, "perturbation_norm": math.nan}, "`perturbation_norm` must be > 1, got nan"),
    ],
)
def test_invalid_values_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_perturbation({"w": torch.ones(1)}, [torch.ones(1)], **values)
