"""SAM as it is often written: the regression tests must fail on it."""

import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_sam import SAMConfig


class NaiveSAMTrainer(Trainer):
    """Two passes with add and subtract; no care for buffers, draws, accumulation or exceptions."""

    args: SAMConfig

    def training_step(
        self, model: nn.Module, inputs: dict, num_items_in_batch: int | None = None
    ) -> Tensor:
        model.zero_grad()  # loses the window's earlier micro-batches
        loss = super().training_step(model, inputs, num_items_in_batch)
        moved = [p for p in model.parameters() if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in moved]).norm()
        epsilons = {p: p.grad * (self.args.rho / norm) for p in moved}  # no floor
        with torch.no_grad():
            for p, epsilon in epsilons.items():
                p.add_(epsilon)
        model.zero_grad()
        super().training_step(model, inputs, num_items_in_batch)
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:  # misses what the second pass does not use
                    p.sub_(epsilons[p])  # not exact, and a nan stays
        return loss
