"""What cannot be measured, and what is said of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import build
from measured import MEASUREMENTS, batches
from torch import Tensor, nn

from hf_sam.diagnostics import hessian, rho_scan, sharpness


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
        (
            lambda: build("mlp").to("meta"),
            batches(48),
            "on one device, and not on `meta`, got meta",
        ),
        (lambda: nn.Linear(6, 4, dtype=torch.complex64), batches(48), "real parameters"),
        (lambda: build("mlp"), [np.zeros((4, 6))], "a batch must hold tensors"),
        (lambda: build("mlp"), [torch.zeros(4, 6)], "a batch must be a mapping, or a pair"),
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


def test_a_loss_without_a_gradient_is_refused() -> None:
    """It would look like the flattest of minima."""

    def detached(model: nn.Module, batch: Any) -> Tensor:
        return model(**batch)["loss"].detach()

    for measure in (sharpness, hessian, rho_scan):
        with pytest.raises(ValueError, match="must depend on the trainable parameters"):
            measure(build("mlp"), batches(48), detached, progress=False)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    def root(model: nn.Module, batch: Any) -> Tensor:
        return model.body[0].bias.abs().sqrt().sum() + model(**batch)["loss"]

    model = build("mlp")
    model.body[0].bias.data.zero_()
    with pytest.raises(ValueError, match="needs a finite gradient"):
        sharpness(model, batches(48), root, progress=False)


def test_seeds_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="`seed` must be >= 0, got -1"):
        sharpness(build("mlp"), batches(48), seed=-1)


def test_a_loss_of_each_example_is_refused() -> None:
    def each(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["x"])["logits"].square().sum(dim=1)

    with pytest.raises(ValueError, match="must return a tensor of one number"):
        sharpness(build("mlp"), batches(48), each)
