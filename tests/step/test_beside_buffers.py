"""Attributes that say what a module's buffers hold are put back with them; odd buffers train."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import build, make_trainer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

from hf_sam import SAMTrainer
from hf_sam.step.buffers import Buffers

KINDS = ["written", "registered", "counted by a tensor", "counted in place"]
WHOLE = torch.linspace(0.5, 1.5, 64, dtype=torch.float64)


class Filled(nn.Module):
    """A table as a buffer, which passes fill as far as they need it, and its length beside it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.length = kind, None if kind == "registered" else 0
        if kind == "counted in place":
            self.length = torch.tensor(0)
        if kind != "registered":
            self.register_buffer("table", torch.zeros_like(WHOLE), persistent=False)
        if kind == "filled before":
            self(len(WHOLE))

    def forward(self, rows: int) -> Tensor:
        if self.length is None or rows > self.length:
            if self.kind == "registered":
                self.register_buffer("table", WHOLE[:rows].clone(), persistent=False)
            else:
                self.table[:rows] = WHOLE[:rows]
            if self.kind == "counted in place":
                self.length.fill_(rows)
            else:
                self.length = torch.tensor(rows) if self.kind == "counted by a tensor" else rows
        return self.table[:rows]


class Scaled(nn.Module):
    """Examples scaled by a part of the table; each step needs more of it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.filled, self.calls = build("mlp"), Filled(kind), 0

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        self.calls += 1
        rows = 8 * ((self.calls + 1) // 2)
        return self.body(x * self.filled(rows)[-8:].unsqueeze(1), labels)


def weights_of(kind: str, folder: Path) -> Tensor:
    model = Scaled(kind)
    make_trainer(model, folder, max_steps=4).train()
    assert model.calls == 8
    return torch.cat([param.detach().flatten() for param in model.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_both_passes_find_the_table_as_long(kind: str, tmp_path: Path) -> None:
    """A table that is put back beside a length that is not would be read where it is empty."""
    assert torch.equal(weights_of(kind, tmp_path), weights_of("filled before", tmp_path))


def test_the_length_is_as_before_after_an_exception(tmp_path: Path) -> None:
    model = Scaled("written")

    def fail(*args: Any) -> None:
        raise RuntimeError("out of luck")

    model.body.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        make_trainer(model, tmp_path).train()
    assert model.filled.length == 0 and not model.filled.table.any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_length_that_is_put_back_is_not_warned_of(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(Scaled(kind), tmp_path, max_steps=1).train()
    assert "`calls`" in caplog.text  # which has no buffer beside
    assert "`length`" not in caplog.text and "`kind`" not in caplog.text


class Prepared(nn.Module):
    """Prepares itself in its first pass, and keeps a list; its buffer is no part of either."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.is_ready, self.hooked, self.seen, self.count = build("mlp"), False, 0, [], 0
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        if not self.is_ready:
            self.body.register_forward_hook(lambda *args: None)
            self.is_ready = True
        self.seen.append(len(x))
        self.count += 1
        assert len(self.seen) == self.count
        return self.body(x * self.scale, labels)


def test_what_has_no_part_in_the_buffers_is_left_alone(tmp_path: Path) -> None:
    model = Prepared()
    make_trainer(model, tmp_path, max_steps=2).train()
    assert len(model.body._forward_hooks) == 1


def test_classes_that_torch_makes_of_a_users_class_are_the_users() -> None:
    module = Filled("written")
    module.weight = nn.Parameter(torch.ones(2, 2))
    nn.utils.parametrizations.orthogonal(module)
    assert type(module).__module__.startswith("torch.")
    with Buffers(module.modules()).kept():
        module(8)
    assert module.length == 0 and not module.table.any()


@pytest.mark.parametrize("kind", ["quantised", "conjugate"])
def test_buffers_whose_bytes_cannot_be_viewed(kind: str) -> None:
    layer = nn.Linear(2, 2)
    if kind == "quantised":
        layer.register_buffer("b", torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8))
    else:
        layer.register_buffer("b", torch.ones(4, dtype=torch.complex64).conj())
    before = layer.b.dequantize() if kind == "quantised" else layer.b.clone()
    with Buffers(layer.modules()).kept():
        layer.b.copy_(2 * before)
    assert torch.equal(layer.b.dequantize() if kind == "quantised" else layer.b, before)


class Llama(nn.Module):
    """A tiny Llama whose frequencies change with the length of a batch."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4}
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
        torch.manual_seed(0)
        config = LlamaConfig(**sizes, **heads, rope_parameters=rope)
        self.llama = LlamaForCausalLM(config).double()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        rows = 3 if float(x[0, 0]) > 0 else 12
        words = ((x[:, :1] * 5).long().abs() + torch.arange(rows)) % 16
        out = self.llama(input_ids=words, labels=words)
        return {"loss": out.loss, "logits": out.logits}


class Fresh(Trainer):
    """SAM with plain SGD, each pass by a copy of the model as it was before the step."""

    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        before = copy.deepcopy(model)
        loss = super().training_step(model, inputs, *args)
        gradients = [param.grad for param in model.parameters()]
        norm = torch.stack([grad.square().sum() for grad in gradients]).sum().sqrt()
        with torch.no_grad():
            for param, grad in zip(before.parameters(), gradients, strict=True):
                param.add_(grad, alpha=0.5 / float(norm))
        super().training_step(before, inputs, *args)
        for param, moved in zip(model.parameters(), before.parameters(), strict=True):
            param.grad = moved.grad
        return loss


def test_frequencies_that_change_with_the_length(tmp_path: Path) -> None:
    """Transformers' dynamic rope: a buffer, and beside it a number or a tensor of no dimension."""
    ends = []
    for kind in (SAMTrainer, Fresh):
        model = Llama()
        make_trainer(model, tmp_path, trainer=kind, max_steps=8, rho=0.5).train()
        ends.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    torch.testing.assert_close(*ends, rtol=0.0, atol=1e-12)  # float64; sums in another order
