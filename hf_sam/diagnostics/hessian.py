"""The Hessian of the loss: its largest eigenvalues, its trace and its spectral density."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh
from torch import nn
from tqdm.auto import tqdm

from ..reporting.interval import Interval
from .directions import gaussians, signs
from .lanczos import Vector, lanczos
from .loss import LossFunction, model_loss
from .measuring import measuring
from .objective import Objective, Setup, Weights

KRYLOV = 10  # fewest vectors that ARPACK keeps; else twice the number of eigenvalues
GRID = 1024  # points of a density
MARGIN = 6.0  # standard deviations beyond the outermost eigenvalues


@dataclass(frozen=True)
class Density:
    """A spectral density, with each eigenvalue smoothed by a Gaussian."""

    eigenvalues: NDArray[np.float64]  # (G,) evenly spaced
    density: NDArray[np.float64]  # (G,) integrates to 1
    width: float  # standard deviation of the Gaussian, in units of the eigenvalues
    probes: int  # random vectors
    steps: int  # of the Lanczos process for each

    def __post_init__(self) -> None:
        """Check what a plot of it needs."""
        if self.density.shape != self.eigenvalues.shape or not self.width > 0:
            raise ValueError("a density must have a height for each eigenvalue and a width > 0")


@dataclass(frozen=True)
class Hessian:
    """The second derivatives of the mean loss in the trainable weights, at the model's weights."""

    setup: Setup
    eigenvalues: NDArray[np.float64]  # (k,) the largest, in descending order
    trace: Interval | None  # over random vectors; its interval covers their draw only
    density: Density | None
    products: int  # number of Hessian-vector products, each about two forward-backward passes

    def __post_init__(self) -> None:
        """Check that there is an eigenvalue."""
        if not (self.eigenvalues.ndim == 1 and len(self.eigenvalues)):
            raise ValueError("`eigenvalues` must be one or more numbers")

    @property
    def lambda_max(self) -> float:
        """The largest eigenvalue."""
        return float(self.eigenvalues[0])

    @property
    def lambda_ratio(self) -> float | None:
        """lambda_max / lambda_5, as in section 4.2 of arXiv 2010.01412; None if that is not > 0."""
        if len(self.eigenvalues) < 5 or not self.eigenvalues[4] > 0:
            return None
        return float(self.eigenvalues[0] / self.eigenvalues[4])


def hessian(
    model: nn.Module,
    batches: Iterable[Any],
    loss: LossFunction = model_loss,
    *,
    top_k: int = 5,
    tolerance: float = 1e-3,
    trace_probes: int = 30,
    density_probes: int = 0,
    density_steps: int = 40,
    max_batches: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> Hessian:
    """Measure the Hessian of the mean loss by Hessian-vector products, without forming it.

    Eigenvalues: ARPACK's implicitly restarted Lanczos method (scipy's `eigsh`). Trace: the mean of
    z H z over vectors z of random signs (Hutchinson). Density: stochastic Lanczos quadrature
    (arXiv 1901.10159, algorithms 1 and 2) from Gaussian vectors.

    Args:
        model: Measured in the mode that `measuring` sets, and restored exactly.
        batches: A data loader. The memory needed is about that of three training steps on the
            largest batch: batches of half the training's size stay within twice a training step's.
        loss: The mean loss of a batch; must have second derivatives.
        top_k: Number of eigenvalues; `lambda_ratio` needs 5.
        tolerance: Relative accuracy of the eigenvalues; 0 for that of the dtype.
        trace_probes: Random vectors for the trace; 0 to leave it out.
        density_probes: Random vectors for the density, 1 for a picture; 0 to leave it out.
        density_steps: Lanczos steps for each of them.
        max_batches: Use the first so many batches; None for all.
        seed: Seed of the random vectors and of the loader's order.
        dtype: To compute in; None for the weights' own. The vectors are kept in float64.
        progress: Show a progress bar.

    Returns:
        The measurements. Costs 10 to 100 Hessian-vector products for the eigenvalues, depending on
        how close they are, one for each probe of the trace and `density_steps` for each of the
        density; a product is about two forward-backward passes over the examples. Memory: for each
        weight 8 bytes times the largest of 10, 2 `top_k` and `density_steps`.

    Raises:
        ValueError: If an argument is out of its range, there is nothing to measure, or the Hessian
            is not finite or does not exist.
    """
    _require_valid(tolerance, top_k, trace_probes, density_probes, density_steps)
    bar = tqdm(desc="Hessian-vector products", disable=not progress)
    with bar, measuring(
        model, batches, loss, max_batches=max_batches, seed=seed, dtype=dtype
    ) as objective:  # fmt: skip
        product = Product(objective, bar)
        return Hessian(
            setup=objective.setup,
            eigenvalues=_largest(product, top_k, tolerance, seed),
            trace=_trace(product, objective.weights, trace_probes, seed),
            density=_density(product, objective.weights, density_probes, density_steps, seed),
            products=product.count,
        )


def _require_valid(
    tolerance: float, top_k: int, trace_probes: int, density_probes: int, density_steps: int
) -> None:
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` must be >= 0, got {tolerance}.")
    if top_k < 1 or min(trace_probes, density_probes) < 0 or density_steps < 2:
        raise ValueError(
            "`top_k` must be >= 1, `trace_probes` and `density_probes` >= 0 and `density_steps` "
            f">= 2, got {top_k}, {trace_probes}, {density_probes} and {density_steps}."
        )


class Product:
    """Multiplies the Hessian by vectors (n,), and counts the products."""

    def __init__(self, objective: Objective, bar: Any = None) -> None:
        """Store the objective.

        Args:
            objective: The loss whose Hessian it is, at the model's weights.
            bar: A progress bar to advance by one for each product.
        """
        self.size = objective.setup.parameters
        self.count = 0
        self._objective = objective
        self._bar = bar

    def __call__(self, vector: Vector) -> Vector:
        """Return the product, (n,).

        Raises:
            ValueError: If it is not finite.
        """
        self.count += 1
        if self._bar is not None:
            self._bar.update()
        result = flat(self._objective.hessian_product(_unflat(vector, self._objective.weights)))
        if not np.isfinite(result).all():
            raise ValueError(
                "the Hessian must be finite, got a product with a vector that is not: the loss has "
                "no second derivative at these weights, or overflows (try `dtype=torch.float64`)."
            )
        return result


def flat(weights: Weights) -> Vector:
    """Return all tensors as one vector (n,)."""
    return torch.cat([x.detach().reshape(-1).cpu().double() for x in weights.values()]).numpy()


def _unflat(vector: Vector, like: Weights) -> Weights:
    pieces = torch.as_tensor(vector).split([x.numel() for x in like.values()])
    return {
        name: piece.view_as(x).to(x.device, x.dtype)
        for (name, x), piece in zip(like.items(), pieces, strict=True)
    }


def _largest(product: Product, k: int, tolerance: float, seed: int) -> NDArray[np.float64]:
    """Return the k largest eigenvalues, or all if there are fewer, in descending order."""
    krylov = max(2 * k, KRYLOV)
    if product.size <= krylov:  # too few dimensions for ARPACK, so form the matrix
        columns = [product(row) for row in np.eye(product.size)]
        matrix = np.stack(columns)
        return np.asarray(np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1][:k], np.float64)
    shape = (product.size, product.size)
    operator = LinearOperator(shape, matvec=lambda v: product(v.reshape(-1)), dtype=np.float64)
    start = np.random.default_rng(seed).standard_normal(product.size)
    options = {"k": k, "which": "LA", "ncv": krylov, "tol": tolerance, "v0": start}
    try:
        found = eigsh(operator, return_eigenvectors=False, **options)
    except ArpackNoConvergence as error:
        raise ValueError(
            f"the largest eigenvalues did not converge in {product.count} products: pass a larger "
            f"`tolerance` than {tolerance:g}, or `dtype=torch.float64`."
        ) from error
    except ArpackError:
        if product(start).any():
            raise
        return np.zeros(k)  # a zero matrix, on which ARPACK fails
    return np.sort(found)[::-1].copy()


def _trace(product: Product, weights: Weights, probes: int, seed: int) -> Interval | None:
    """Return Hutchinson's estimate from random signs, or None without any."""
    draws = islice(signs(weights, seed=seed), probes)
    traces = [float(z @ product(z)) for z in map(flat, draws)]
    return Interval.of(traces) if traces else None


def _density(
    product: Product, weights: Weights, probes: int, steps: int, seed: int
) -> Density | None:
    """Return the density by Lanczos quadrature from Gaussian vectors, or None without any."""
    starts = islice(gaussians(weights, seed=seed), probes)
    quadratures = [lanczos(product, flat(start), steps) for start in starts]
    return _smoothed(quadratures, steps) if quadratures else None


def _smoothed(
    found: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], steps: int
) -> Density:
    """Average the quadratures, with each node smoothed by a hundredth of the spectrum's range."""
    nodes = np.concatenate([nodes for nodes, _ in found])
    weights = np.concatenate([weights for _, weights in found]) / len(found)
    width = max(float(np.ptp(nodes)) / 100, 1e-6 * float(np.abs(nodes).max()), 1e-12)
    grid = np.linspace(nodes.min() - MARGIN * width, nodes.max() + MARGIN * width, GRID)
    bells = np.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2)  # (G, nodes)
    density = bells @ weights / (width * np.sqrt(2 * np.pi))
    return Density(grid, density, width, probes=len(found), steps=steps)
