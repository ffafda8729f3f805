"""Both passes draw the same numbers, and only the first moves running statistics."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from hf_sam import random_state, replayed, running_stats_kept


def draw() -> tuple[float, ...]:
    return (
        float(torch.rand(())),
        float(np.random.rand()),
        random.random(),
        float(nn.functional.dropout(torch.ones(64)).sum()),
    )


def test_draws_repeat_and_then_go_on() -> None:
    state = random_state([torch.device("cpu")])
    first = draw()
    expected_next = random_state([])
    with replayed(state):
        assert draw() == first
        draw()  # a second pass that draws more must not shift what follows
    after = draw()
    with replayed(expected_next):
        assert draw() == after


class Rebinds(nn.Module):
    """Binds a new tensor to its buffer, as moving averages are often written."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("fixed", torch.arange(5).expand(3, -1))
        with torch.inference_mode():
            self.register_buffer("inferred", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.average = 0.9 * self.average + x
        return x


def test_rebound_buffers_come_back_and_unwritable_ones_do_no_harm() -> None:
    model = Rebinds()
    model(torch.ones(3))
    with running_stats_kept(model):
        model(torch.ones(3))
    assert torch.equal(model.average, torch.ones(3))


def test_draws_go_on_after_an_exception() -> None:
    state = random_state([])
    draw()
    before = random_state([])
    with pytest.raises(RuntimeError), replayed(state):
        raise RuntimeError
    after = draw()
    with replayed(before):
        assert draw() == after


NORMS = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "no momentum": lambda: nn.BatchNorm1d(4, momentum=None),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(4, track_running_stats=True),
    "spectral_norm": lambda: spectral_norm(nn.Conv1d(4, 4, 1)),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("factor", [1.0, float("inf")])
def test_running_statistics_are_those_of_one_pass(norm: str, factor: float) -> None:
    torch.manual_seed(0)
    layer = NORMS[norm]()
    x = torch.randn(8, 4, 5)
    layer(x)
    expected = {name: b.clone() for name, b in layer.named_buffers()}
    with running_stats_kept(layer):
        layer(factor * x)
        spoilt = any(not torch.equal(b, expected[name]) for name, b in layer.named_buffers())
    assert spoilt, "the second pass must have something to undo"
    assert all(torch.equal(b, expected[name]) for name, b in layer.named_buffers())
