"""What the passes found out since the last log entry, kept on the device until it is logged."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepLog:
    """One rank's sums over its perturbations since the last log entry."""

    first_step: int  # the Trainer's global step at the last log entry
    perturbed_loss: Tensor | float = 0.0  # () in the unit of the Trainer's own loss sum
    ascent_grad_norm: Tensor | float = 0.0  # () L2, of the mean loss that a perturbation ascends
    ascents: int = 0

    def add(self, perturbed_loss: Tensor, ascent_grad_norm: Tensor) -> "StepLog":
        """Return the sums with one perturbation's added, without synchronising with the host."""
        return replace(
            self,
            perturbed_loss=self.perturbed_loss + perturbed_loss,
            ascent_grad_norm=self.ascent_grad_norm + ascent_grad_norm,
            ascents=self.ascents + 1,
        )

    def finite_or_mean(self, loss: Tensor, global_step: int) -> Tensor:
        """Return the loss, or the running mean for a nan or inf, as the Trainer's filter does."""
        mean = torch.zeros_like(loss) + self.perturbed_loss / (1 + global_step - self.first_step)
        return torch.where(torch.isfinite(loss), loss, mean)

    def sums(self, device: torch.device) -> Tensor:
        """Return the sums and the count as float32 of shape (1, 3), to be gathered over ranks."""
        sums = (self.perturbed_loss, self.ascent_grad_norm, float(self.ascents))
        return torch.stack([torch.as_tensor(s, device=device).float() for s in sums]).unsqueeze(0)
