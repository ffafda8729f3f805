"""SAM's perturbation epsilon: computing it from the clean gradient, and applying it to the weights.

Notation of Foret et al. (arXiv 2010.01412) and Kwon et al. (ASAM, arXiv 2102.11600): w are the
weights, g the gradient at w, T ASAM's scaling, p the norm that bounds epsilon and q its dual,
1/p + 1/q = 1. All parameters together count as one vector.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from .shards import local
from .vectors import NORM_FLOOR, as_dense, gradient_norm, multiply

Saved = list[tuple[Tensor, Tensor]]  # perturbed parameters, each with its w


def require_valid_ascent(*, rho: float, eta: float, perturbation_norm: float) -> None:
    """Check the numbers that a perturbation is computed from.

    Args:
        rho: Must be finite and >= 0.
        eta: Must be finite and >= 0.
        perturbation_norm: Must be > 1; `math.inf` is allowed.

    Raises:
        ValueError: For the first invalid value, with rule and remedy.
    """
    if not (math.isfinite(rho) and rho >= 0):
        raise ValueError(
            f"`rho` must be >= 0, got {rho}: 0 is the base optimizer, 0.05 the usual start."
        )
    if not (math.isfinite(eta) and eta >= 0):
        raise ValueError(f"`eta` must be >= 0, got {eta}: ASAM's authors use 0.01.")
    if not perturbation_norm > 1:
        raise ValueError(
            f"`perturbation_norm` must be > 1, got {perturbation_norm}: the paper uses 2; "
            "inf moves every weight by the same step."
        )


def take_gradients(params: Iterable[Tensor]) -> list[Tensor | None]:
    """Return the parameters' gradients and set their `grad` to None.

    Args:
        params: The parameters, in the order of the result.

    Returns:
        The gradient tensors themselves, not copies; None for a parameter without a gradient.
    """
    params = list(params)
    gradients = [param.grad for param in params]
    for param, gradient in zip(params, gradients, strict=True):
        if gradient is not None:
            param.grad = None
    return gradients


def put_gradients(params: Iterable[Tensor], gradients: Iterable[Tensor | None] | None) -> None:
    """Set the parameters' `grad`, replacing what is there.

    Args:
        params: The parameters.
        gradients: One for each parameter, of its shape, or None; None alone clears all.
    """
    params = list(params)
    gradients = [None] * len(params) if gradients is None else gradients
    for param, gradient in zip(params, gradients, strict=True):
        if param.grad is not gradient:
            param.grad = gradient


@contextmanager
def gradients_set_aside(params: Iterable[Tensor]) -> Iterator[None]:
    """Context manager that removes the parameters' gradients, and puts them back on exit.

    Args:
        params: The parameters.

    Yields:
        Nothing. No copies are made.
    """
    params = list(params)
    gradients = take_gradients(params)
    try:
        yield
    finally:
        put_gradients(params, gradients)


@torch.no_grad()
def compute_perturbation(
    params: Mapping[str, Tensor],
    clean_grad: Sequence[Tensor | None],
    *,
    rho: float,
    adaptive: bool = False,
    eta: float = 0.01,
    perturbation_norm: float = 2.0,
    l2_norm: Tensor | None = None,
) -> list[Tensor | None]:
    """Turn the clean gradient into the perturbation, in place.

    For p = 2 this is epsilon = rho * T^2 g / ||T g||_2, with T = 1 SAM's (2010.01412, equation 2);
    for general p epsilon = rho * T sign(Tg) |Tg|^(q-1) / (||Tg||_q^q)^(1/p). ASAM's T follows its
    official code: |w| + eta on tensors whose name contains `weight`, 1 on all others. So epsilon
    has ||epsilon / T||_p = rho, unless the gradient is below `NORM_FLOOR`.

    Args:
        params: The parameters by name, as `named_parameters` gives them.
        clean_grad: One gradient for each parameter, of its shape, or None. Consumed: the result
            uses the same memory. It may contain a loss scale, which cancels.
        rho: Radius in parameter space.
        adaptive: Whether to scale by the weights (ASAM).
        eta: ASAM's additive term.
        perturbation_norm: p, greater than 1, `math.inf` included.
        l2_norm: L2 norm of the clean gradient, of shape (), if it is known already.

    Raises:
        ValueError: If `rho`, `eta` or `perturbation_norm` is out of its range.

    Returns:
        The perturbation, aligned with `params`; None, which stands for zero, where there was no
        gradient. Costs two passes over the gradients and, with `adaptive`, a temporary copy of
        them.
    """
    require_valid_ascent(rho=rho, eta=eta, perturbation_norm=perturbation_norm)
    dense = [None if grad is None else as_dense(grad) for grad in clean_grad]
    present = [grad for grad in dense if grad is not None]
    scaled, scales = [], []
    if adaptive:
        for (name, param), grad in zip(params.items(), dense, strict=True):
            if grad is not None and "weight" in name:
                scaled.append(grad)
                scales.append(param.detach().abs().add_(eta))
    multiply(scaled, scales)
    _dual_step(present, rho, perturbation_norm, None if adaptive else l2_norm)
    multiply(scaled, scales)
    return dense


@contextmanager
def perturbed(
    params: Iterable[Tensor],
    perturbation: Iterable[Tensor | None],
    *,
    saved: Saved | None = None,
) -> Iterator[None]:
    """Context manager that sets the parameters to w + epsilon, and back to w on exit, bit for bit.

    The weights are restored by copying, also after an exception or if epsilon is not finite:
    subtracting epsilon would leave rounding errors, rebinding `.data` would move the storage. The
    autocast cache is cleared on entry and exit, so that no casts of the other weights are used.

    Args:
        params: The parameters to perturb; those without a perturbation are not touched.
        perturbation: One tensor for each parameter, of its shape, or None. No reference is kept:
            if the caller keeps none either, its memory is free while the block runs.
        saved: A list that has the perturbed parameters and their w while they are moved, for
            `at_w`.

    Yields:
        Nothing. Memory: one copy of the perturbed parameters.
    """
    pairs = zip(params, perturbation, strict=True)
    moving = [(param, epsilon) for param, epsilon in pairs if epsilon is not None]
    saved = [] if saved is None else saved
    with torch.no_grad():
        weights = [local(param) for param, _ in moving]
        saved.extend([(weight, weight.clone()) for weight in weights])
    try:
        with torch.no_grad():
            if weights:
                torch._foreach_add_(weights, [local(epsilon) for _, epsilon in moving])
        torch.clear_autocast_cache()
        del pairs, moving, perturbation
        yield
    finally:
        with torch.no_grad():
            if weights:
                torch._foreach_copy_(weights, [own for _, own in saved])
        saved.clear()
        torch.clear_autocast_cache()


@contextmanager
def at_w(saved: Saved) -> Iterator[None]:
    """Context manager that has w in place in the midst of a pass, as the handler of a signal needs.

    Args:
        saved: What `perturbed` has filled; empty where nothing is moved.

    Yields:
        Nothing. The pass goes on at w + epsilon afterwards, as no value is overwritten.
    """
    pairs = list(saved)
    weights = tuple(weight for weight, _ in pairs)
    moved = [weight.data for weight in weights]
    # torch has no public way to say that a tensor has its values again
    with _unsafe_preserve_version_counter(weights):
        try:
            for weight, own in pairs:
                weight.data = own
            yield
        finally:
            for weight, values in zip(weights, moved, strict=True):
                weight.data = values


def _dual_step(vectors: list[Tensor], rho: float, p: float, l2_norm: Tensor | None) -> None:
    """Replace x by rho sign(x) (|x| / ||x||_q)^(q-1), in place: the ascent step of p-norm rho.

    Equal to rho sign(x) |x|^(q-1) / (||x||_q^q)^(1/p), as q-1 = q/p. For p near 1 the exponent q is
    large, so x is first divided by its largest entry, or |x|^q would leave the range of floats.
    """
    if p == 2.0:
        norm = gradient_norm(vectors) if l2_norm is None else l2_norm
        multiply(vectors, rho / norm.clamp(min=NORM_FLOOR))
        return
    q = 1.0 if p == math.inf else p / (p - 1.0)
    largest = gradient_norm(vectors, math.inf)
    multiply(vectors, 1.0 / largest.clamp(min=NORM_FLOOR))
    multiply(vectors, 1.0 / gradient_norm(vectors, q).clamp(min=1.0))
    for x in map(local, vectors):
        x.copy_(x.sign() * x.abs().pow_(q - 1.0))
    multiply(vectors, rho + 0.0 * largest)  # nan if x was not finite, which signs would hide
