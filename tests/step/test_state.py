"""Both passes of a micro-batch begin from one state, and what the clean pass makes of it stays.

At a rho that moves nothing in float64 SAM is the plain Trainer, whatever a forward pass keeps.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cases import build, make_trainer
from scenarios import PLAIN
from stateful import MADE_LATE, MODELS, SMALL, Counts, OtherGenerators
from torch import Tensor, nn
from transformers import default_data_collator

from hf_sam import SAMTrainer
from hf_sam.backends import engine_of
from hf_sam.config import ASCENT_SCOPES
from hf_sam.step.buffers import LARGE, Buffers
from hf_sam.step.parts import Parts


@pytest.mark.parametrize("scope", ASCENT_SCOPES)
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in MADE_LATE])
def test_a_small_rho_is_the_plain_trainer(
    name: str, accumulation: int, scope: str, tmp_path: Path
) -> None:
    trained = []
    for kind in (PLAIN, {"rho": SMALL, "ascent_scope": scope}):
        torch.manual_seed(0)
        model = MODELS[name]().double()
        make_trainer(
            model, tmp_path, max_steps=6, gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=4, **kind,
        ).train()  # fmt: skip
        trained.append(model.state_dict())
    assert trained[0].keys() == trained[1].keys()
    for key, plain in trained[0].items():
        torch.testing.assert_close(trained[1][key], plain, rtol=0, atol=1e-9)


def test_generators_made_by_the_first_pass_are_replayed_after_it(tmp_path: Path) -> None:
    model = OtherGenerators().double()
    shifts: list[Tensor] = []
    drawn = model.shift
    model.shift = lambda x: shifts.append(drawn(x)) or shifts[-1]
    make_trainer(model, tmp_path, max_steps=4).train()
    clean, perturbed = shifts[::2], shifts[1::2]
    assert [torch.equal(a, b) for a, b in zip(clean, perturbed, strict=True)][1:] == [True] * 3
    assert not torch.equal(clean[1], clean[2])


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_one_pass_counts(fraction: float, tmp_path: Path) -> None:
    model = Counts().double()
    make_trainer(model, tmp_path, max_steps=5, ascent_fraction=fraction).train()
    assert model.passes == 5


def test_a_buffer_in_a_file_for_reading_only(tmp_path: Path) -> None:
    """Writing its own values into it would end the process."""
    np.save(tmp_path / "table.npy", np.array([np.nan, 1.0]))
    model = build("mlp")
    table = torch.from_numpy(np.load(tmp_path / "table.npy", mmap_mode="r"))
    model.register_buffer("table", table, persistent=False)
    trainer = make_trainer(model, tmp_path, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_signs_of_zero_are_put_back() -> None:
    layer = nn.BatchNorm1d(2)
    layer.register_buffer("shift", torch.zeros(2))
    with Buffers(layer.modules()).kept():
        layer.shift.neg_()
    assert not torch.signbit(layer.shift).any()


def test_inputs_changed_at_some_steps(tmp_path: Path) -> None:
    """A mixup in place at every other step; both passes see the batch as it came."""
    given: list[Tensor] = []

    class Mixed(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            given.append(inputs["x"].clone())
            if self.state.global_step % 2:
                inputs["x"].mul_(0.7).add_(inputs["x"].flip(0).mul(0.3))
            return model(**inputs)["loss"]

    make_trainer(build("mlp"), tmp_path, trainer=Mixed, max_steps=4).train()
    assert len(given) == 8
    assert all(map(torch.equal, given[::2], given[1::2]))


class Picky(dict[str, Tensor]):
    """Looks at its values when it is made, as batches of some libraries do."""

    def __init__(self, values: Any) -> None:
        super().__init__(values)
        self.rows = {len(value) for value in self.values()}


def test_batches_may_look_at_their_values(tmp_path: Path) -> None:
    trainer = make_trainer(
        build("mlp"),
        tmp_path,
        recorder=lambda rows: Picky(default_data_collator(rows)),
        max_steps=2,
    )
    trainer.train()
    assert trainer.state.global_step == 2


def test_masks_are_drawn_again_where_only_passes_are_on_a_device(tmp_path: Path) -> None:
    """Shards may lie on the host, and dropout draws on the device."""
    trainer = make_trainer(build("mlp"), tmp_path)
    trainer.accelerator = SimpleNamespace(
        device=torch.device("cuda", 0), unwrap_model=lambda model, **_: model
    )
    parts = Parts.of(trainer.model, trainer, engine_of(trainer.model), [])
    assert parts.devices == {torch.device("cpu"), torch.device("cuda", 0)}


def test_gradients_that_a_hook_takes_away_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As an optimizer that offloads gradients does: both passes would be at w."""
    model = build("mlp")
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    make_trainer(model, tmp_path, max_steps=2).train()
    assert "A clean pass has left no gradient in what is perturbed" in caplog.text


def test_still_buffers_are_copied_once() -> None:
    """A mask and a table are not copied again; what moves, or begins to move, is."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)).train()
    model.register_buffer("table", torch.zeros(LARGE))
    model.register_buffer("small", torch.zeros(4))
    buffers = Buffers(model.modules())
    first = buffers.snapshot()
    model(torch.randn(5, 3))
    buffers.look(first)

    def values(snapshot: Any) -> list[int]:
        return [copy.values.data_ptr() for copy in snapshot.copies.values()]

    second, third = buffers.snapshot(), buffers.snapshot()
    same = [a == b for a, b in zip(values(second), values(third), strict=True)]
    names = [name for name, _ in model.named_buffers()]
    told = dict(zip(names, same, strict=True))
    assert told["table"]
    assert not told["small"]  # for all that torch can tell
    assert not told["0.running_mean"]
    assert not told["0.running_var"]
    model.table.add_(1)
    fourth = buffers.snapshot()
    model.table.add_(1)
    buffers.put_back(fourth)
    assert torch.equal(model.table, torch.ones(LARGE))
    buffers.put_back(first)
    assert torch.equal(model.table, torch.zeros(LARGE))
    assert torch.equal(model[0].running_mean, torch.zeros(3))
