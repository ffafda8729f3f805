"""The Lanczos process, which reduces a symmetric operator to a small tridiagonal matrix."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]  # (n,)


def lanczos(
    product: Callable[[Vector], Vector], start: Vector, steps: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Run the Lanczos process with full reorthogonalisation (Golub and Van Loan, section 10.1).

    Args:
        product: Multiplies the symmetric matrix by a vector (n,).
        start: (n,), not zero.
        steps: Largest number of products; fewer if the Krylov space is exhausted.

    Returns:
        The eigenvalues (k,) of the tridiagonal matrix, in ascending order, and the squares (k,) of
        the first entries of its eigenvectors: nodes and weights of the Gaussian quadrature for the
        spectral measure of `start`. Memory: one vector for each step.
    """
    basis = [start / np.linalg.norm(start)]
    alphas: list[float] = []
    betas: list[float] = []
    for _ in range(min(steps, len(start))):
        residual = product(basis[-1])
        alphas.append(float(basis[-1] @ residual))
        for _ in range(2):  # after one, rounding errors would grow
            for v in basis:
                residual = residual - (v @ residual) * v
        betas.append(float(np.linalg.norm(residual)))
        if betas[-1] <= 1e-10 * max(map(abs, [*alphas, *betas])):
            break
        basis.append(residual / betas[-1])
    k = len(alphas)
    matrix = np.diag(alphas) + np.diag(betas[: k - 1], 1) + np.diag(betas[: k - 1], -1)
    nodes, vectors = np.linalg.eigh(matrix)
    return nodes, vectors[0] ** 2
