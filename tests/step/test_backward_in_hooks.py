"""Losses that make a backward pass in a hook: the clean pass computes every gradient then."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import build, make_trainer
from torch import Tensor, nn
from whole_backward import differences

from hf_sam import SAMTrainer


class CachedLoss(SAMTrainer):
    """A loss whose own hook makes the backward pass, as that of sentence-transformers does."""

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        logits = model.body(inputs["x"])
        cut = logits.detach().requires_grad_()
        loss = nn.functional.cross_entropy(cut, inputs["labels"])
        (gradient,) = torch.autograd.grad(loss, cut)
        loss = loss.detach().requires_grad_()
        loss.register_hook(lambda grad: logits.backward(gradient * grad))
        return loss


class CutByAHook(SAMTrainer):
    """A part of the network that is reached by the hook of a tensor in the middle."""

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        hidden = model.body[0](inputs["x"])
        cut = hidden.detach().requires_grad_()
        cut.register_hook(lambda grad: hidden.backward(grad))
        return nn.functional.cross_entropy(model.body[1:](cut), inputs["labels"])


@pytest.mark.parametrize("perturb", ["body.0", "body.2"])
@pytest.mark.parametrize("kind", [CachedLoss, CutByAHook])
def test_hooks_that_make_a_backward_pass(
    kind: type[SAMTrainer], perturb: str, tmp_path: Path
) -> None:
    def make(trainer: type[SAMTrainer] = kind) -> SAMTrainer:
        return make_trainer(build("mlp"), tmp_path, trainer=trainer, perturb=perturb, rho=0.5)

    assert differences(make) == ["as many operations"]
    hooked, plain = make(), make(SAMTrainer)
    for trainer in (hooked, plain):
        trainer.train()
    for a, b in zip(hooked.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
