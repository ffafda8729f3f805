"""The papers' equations on flat float64 vectors, written without the package.

w are the weights, g a gradient, T ASAM's scaling; all of shape (parameters,).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Gradient = Callable[[Tensor, Any], Tensor]  # (w, micro-batch) -> g


def perturbation(g: Tensor, *, rho: float, p: float = 2.0, scale: Tensor | None = None) -> Tensor:
    """Rho T sign(Tg) |Tg|^(q-1) / (||Tg||_q^q)^(1/p), with 1/p + 1/q = 1 (2010.01412, eq. 2)."""
    scale = torch.ones_like(g) if scale is None else scale
    x = scale * g
    if p == math.inf:
        return rho * scale * x.sign()
    q = 1.0 / (1.0 - 1.0 / p)
    return rho * scale * x.sign() * x.abs() ** (q - 1.0) / (x.abs() ** q).sum() ** (1.0 / p)


def sam_gradient(
    gradient: Gradient,
    w: Tensor,
    window: Sequence[Any],
    *,
    rho: float,
    shared: bool = False,
    p: float = 2.0,
    adaptive: Tensor | None = None,
    eta: float = 0.01,
    moved: Tensor | float = 1.0,
    model: nn.Module | None = None,
) -> Tensor:
    """Mean over the window of each micro-batch's gradient at w + epsilon (m-sharpness).

    Both gradients of a micro-batch are of the same draws and begin from the same buffers of
    `model`, those before the first; what the first makes of them stays (the official code).

    Each micro-batch has its own epsilon, or one is `shared` by the window. `adaptive` is a mask of
    the weights that ASAM scales (2102.11600, official code), `moved` of those that epsilon moves.
    """
    buffers = [] if model is None else list(model.buffers())
    draws, clean, states = [], [], []
    for batch in window:
        draws.append(torch.get_rng_state())
        states.append([buffer.clone() for buffer in buffers])
        clean.append(gradient(w, batch))
    after, kept = torch.get_rng_state(), [buffer.clone() for buffer in buffers]
    if shared:
        clean = [sum(clean) / len(clean)] * len(clean)
    scale = None if adaptive is None else torch.where(adaptive, w.abs() + eta, 1.0)
    total = torch.zeros_like(w)
    for batch, before, state, g in zip(window, draws, states, clean, strict=True):
        epsilon = perturbation(g * moved, rho=rho, p=p, scale=scale) if rho else 0.0
        torch.set_rng_state(before)
        copy_to(buffers, state)
        total += gradient(w + epsilon, batch)
    torch.set_rng_state(after)
    copy_to(buffers, kept)
    return total / len(window)


def copy_to(buffers: list[Tensor], values: list[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)


def sgd(w: Tensor, g: Tensor, state: dict[str, Tensor], *, lr: float, momentum: float) -> Tensor:
    """V <- momentum v + g; w <- w - lr v."""
    state["v"] = momentum * state["v"] + g if "v" in state else g
    return w - lr * state["v"]


def adamw(w: Tensor, g: Tensor, state: dict[str, Any], *, lr: float) -> Tensor:
    """AdamW without decay (1711.05101, algorithm 2): beta 0.9 and 0.999, epsilon 1e-8."""
    state["t"] = t = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g * g
    return w - lr * (state["m"] / (1 - 0.9**t)) / ((state["v"] / (1 - 0.999**t)).sqrt() + 1e-8)


def clip(g: Tensor, max_norm: float) -> Tensor:
    """Torch's rule for clipping by the global norm."""
    return g * min(1.0, max_norm / (float(g.norm()) + 1e-6))


def flat_gradient(model: nn.Module, loss: Callable[[Any, Any], Tensor] | None = None) -> Gradient:
    """Turn a model into (w, batch) -> g over its trainable parameters, tied ones once."""
    params = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def compute(w: Tensor, batch: Any) -> Tensor:
        w = w.clone().requires_grad_()
        pieces = w.split([p.numel() for p in params.values()])
        values = {n: x.view_as(p) for (n, p), x in zip(params.items(), pieces, strict=True)}
        out = functional_call(model, values, kwargs=batch)
        (g,) = torch.autograd.grad(loss(out, batch) if loss else out["loss"], w)
        return g

    return compute


def flat_weights(model: nn.Module) -> Tensor:
    """The trainable parameters as one float64 vector."""
    return torch.cat([p.detach().double().flatten() for p in model.parameters() if p.requires_grad])


def weight_mask(model: nn.Module) -> Tensor:
    """Which entries of the flat vector belong to tensors whose name contains `weight`."""
    return name_mask(model, lambda name: "weight" in name)


def name_mask(model: nn.Module, chosen: Callable[[str], bool]) -> Tensor:
    """Which entries of the flat vector belong to tensors whose name is chosen."""
    return torch.cat(
        [
            torch.full((p.numel(),), chosen(name))
            for name, p in model.named_parameters()
            if p.requires_grad
        ]
    )


# Other methods: the gradient that a step descends along. `at` gives the mean gradient of the step's
# examples at any weights, with the same random draws; `state` is what the method keeps.
At = Callable[[Tensor], Tensor]


def unit(x: Tensor) -> Tensor:
    return x / x.norm() if x.norm() > 0 else x


def sam(at: At, w: Tensor, state: dict[str, Any], *, rho: float) -> Tensor:
    """2010.01412, equations 2 and 3."""
    return at(w + rho * unit(at(w)))


def gsam(at: At, w: Tensor, state: dict[str, Any], *, rho: float, alpha: float) -> Tensor:
    """2203.08065, algorithm 1."""
    g = at(w)
    p = at(w + rho * unit(g))
    return p - alpha * (g - (g @ p) / (p @ p) * p)


def wsam(at: At, w: Tensor, state: dict[str, Any], *, rho: float, gamma: float) -> Tensor:
    """2305.15817: the gradient of L + gamma / (1 - gamma) (L(w + epsilon) - L)."""
    g = at(w)
    p = at(w + rho * unit(g))
    return g + gamma / (1 - gamma) * (p - g)


def looksam(
    at: At, w: Tensor, state: dict[str, Any], *, rho: float, alpha: float, k: int
) -> Tensor:
    """2203.02714, algorithm 1."""
    g, t = at(w), state.get("t", 0)
    state["t"] = t + 1
    if t % k == 0:
        s = at(w + rho * unit(g))
        state["v"] = s - s.norm() * (s @ g) / (s.norm() * g.norm()) * unit(g)
        return s
    return g + alpha * g.norm() / state["v"].norm() * state["v"]


def msam(at: At, w: Tensor, state: dict[str, Any], *, rho: float) -> Tensor:
    """2401.12033, algorithm 1; `state` is the base optimizer's."""
    v = state.get("m", state.get("v"))
    return at(w) if v is None else at(w - rho * unit(v))


def s2sam(at: At, w: Tensor, state: dict[str, Any], *, rho: float) -> Tensor:
    """Ji et al., NeurIPS 2024: the gradient of the step before."""
    state["g"] = at(w + rho * unit(state["g"])) if "g" in state else at(w)
    return state["g"]


def friendly_sam(
    at: At, w: Tensor, state: dict[str, Any], *, rho: float, sigma: float, decay: float
) -> Tensor:
    """2403.12350, algorithm 1."""
    g = at(w)
    state["m"] = decay * state.get("m", 0.0) + (1 - decay) * g
    return at(w + rho * unit(g - sigma * state["m"]))


def vasso(at: At, w: Tensor, state: dict[str, Any], *, rho: float, theta: float) -> Tensor:
    """2309.15639, algorithm 1; the official code begins with the first gradient."""
    g = at(w)
    state["d"] = (1 - theta) * state["d"] + theta * g if "d" in state else g
    return at(w + rho * unit(state["d"]))


def le_sam(at: At, w: Tensor, state: dict[str, Any], *, rho: float, sigma: float) -> Tensor:
    """2605.10183: the radius is a budget of the loss over the norm of its gradient."""
    g = at(w)
    return at(w + min(sigma / float(g.norm()), rho) * unit(g))


def ema(weights: list[Tensor], *, decay: float) -> Tensor:
    """The recursion a_t = decay a_(t-1) + (1 - decay) w_t, from a_1 = w_1."""
    average = weights[0]
    for w in weights[1:]:
        average = decay * average + (1 - decay) * w
    return average


def swa(weights: list[Tensor], *, start: float) -> Tensor:
    """1803.05407: the mean of the weights after the steps from a share of the run on."""
    return torch.stack(weights[int(start * len(weights)) :]).mean(0)


def m_sharpness_rise(model: nn.Module, data: Sequence[Any], *, m: int, rho: float) -> float:
    """Mean over groups of m examples of L_S(w + rho g_S / ||g_S||) - L_S(w): section 4.1."""
    total = 0.0
    for start in range(0, len(data), m):
        rows = data[start : start + m]
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        params = {name: p.detach() for name, p in model.named_parameters()}

        def loss(weights: dict[str, Tensor], batch: dict[str, Tensor] = batch) -> Tensor:
            return functional_call(model.eval(), weights, (), batch)["loss"]

        g = torch.func.grad(loss)(params)
        norm = torch.cat([x.reshape(-1) for x in g.values()]).norm()
        moved = {name: w + rho * g[name] / norm for name, w in params.items()}
        total += len(rows) * float(loss(moved) - loss(params))
    return total / len(data)
