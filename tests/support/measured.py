"""Batches to measure on, and the dense Hessian as the paper's definition has it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from cases import EXAMPLES, examples
from tiny_transformers import images
from torch import Tensor, nn
from torch.func import functional_call

from hf_sam.diagnostics import hessian, landscape, line_between, rho_scan, sharpness


def batches(*sizes: int, dtype: torch.dtype = torch.float64) -> list[dict[str, Tensor]]:
    """The case models' examples in batches of these sizes."""
    data = examples(dtype)
    whole = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    pieces = {name: x.split(list(sizes)) for name, x in whole.items()}
    return [{name: pieces[name][i] for name in pieces} for i in range(len(sizes))]


def pairs_of_images(size: int = 16) -> list[tuple[Tensor, Tensor]]:
    data = images()
    pixels = torch.stack([row["pixel_values"] for row in data])
    labels = torch.stack([row["labels"] for row in data])
    return list(zip(pixels.split(size), labels.split(size), strict=True))


def flat_loss(
    model: nn.Module, data: Any = None, *, forward: nn.Module | None = None
) -> tuple[Any, Tensor]:
    """The mean loss over all examples as a function of one vector, and the weights as one."""
    model = (forward or model).eval()
    params = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in params.values()]

    def loss(vector: Tensor) -> Tensor:
        pieces = zip(params.items(), vector.split(sizes), strict=True)
        state = {name: piece.view_as(p) for (name, p), piece in pieces}
        if data is None:
            return functional_call(model, state, (), batches(EXAMPLES)[0])["loss"]
        x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
        return F.cross_entropy(functional_call(model, state, (x,)), y)

    return loss, torch.cat([p.reshape(-1) for p in params.values()])


def dense_hessian(model: nn.Module, data: Any = None) -> Tensor:
    """Every second derivative, (n, n), by torch's own function."""
    loss, weights = flat_loss(model, data)
    return torch.autograd.functional.hessian(loss, weights)


MEASUREMENTS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "sharpness": lambda m, b: sharpness(m, b, m=(4,), progress=False),
    "hessian": lambda m, b: hessian(m, b, trace_probes=2, density_probes=1, progress=False),
    "landscape": lambda m, b: landscape(m, b, points=3, progress=False),
    "ascent": lambda m, b: landscape(m, b, points=3, ascent=True, dimensions=1, progress=False),
    "line_between": lambda m, b: line_between(m, m.state_dict(), b, points=3, progress=False),
    "rho_scan": lambda m, b: rho_scan(m, b, progress=False),
}
