"""What the search for state finds, and by which names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import build, make_trainer
from torch import Tensor

from hf_sam import SAMTrainer
from hf_sam.step.holders import Holders
from hf_sam.vision import freeze_batch_norm


def test_what_hooks_hold_gets_no_other_name() -> None:
    model = build("batch_norm")
    freeze_batch_norm(model)
    found = Holders.of(model, object())
    assert found.modules.keys() == {name for name, _ in model.named_modules()}
    assert set(found.names.values()) == {name for name, _ in model.named_parameters()}


def test_a_hook_of_the_trainers_does_not_lead_to_its_data(tmp_path: Path) -> None:
    class Saves(SAMTrainer):
        def keep(self, module: Any, inputs: Any, output: Tensor) -> None:
            self.features = output.detach()

    model = build("mlp")
    trainer = make_trainer(model, tmp_path, trainer=Saves)
    model.body[0].register_forward_hook(trainer.keep)
    assert set(Holders.of(model, trainer).objects) == {"trainer"}


class Slotted:
    __slots__ = ("__dict__", "count", "unset")


def test_slots_are_attributes_and_their_dictionary_is_none() -> None:
    holder = Slotted()
    holder.count, holder.more = 1, 2
    model = build("mlp")
    model.holder = holder
    own = {name: own for name, _, own in Holders.of(model, object()).attributes()}
    assert own["holder"] == {"count": 1, "more": 2}


@pytest.mark.parametrize("nested", [False, True])
def test_generators_that_methods_name_in_their_file(nested: bool) -> None:
    def outright(self: Any, x: Tensor) -> Tensor:
        return x + torch.randn(1, generator=DRAWS)

    def within(self: Any, x: Tensor) -> Tensor:
        return sum((lambda: x + torch.randn(1, generator=DRAWS))() for _ in range(2))

    kind = type("Draws", (torch.nn.Module,), {"forward": within if nested else outright})
    assert Holders.of(kind(), object()).generators == [DRAWS]


DRAWS = torch.Generator()
