"""What the passes found out since the last log entry, kept on the device until it is logged."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepLog:
    """One rank's sums over its perturbations since the last log entry."""

    last_step: int = -1  # the Trainer's global step at the last perturbation
    clean_loss: Tensor | float = 0.0  # () in the unit of the Trainer's own loss sum
    perturbed_loss: Tensor | float = 0.0  # () likewise
    ascent_grad_norm: Tensor | float = 0.0  # () L2, of the mean loss that a perturbation ascends
    ascents: int = 0  # perturbations
    steps: int = 0  # optimizer steps that had one

    def add(
        self,
        clean_loss: Tensor,
        perturbed_loss: Tensor,
        ascent_grad_norm: Tensor,
        *,
        step: int,
        filter_nonfinite: bool,
    ) -> "StepLog":
        """Return the sums with one perturbation's added, without synchronising with the host.

        Args:
            clean_loss: Of shape (), as the Trainer sums it.
            perturbed_loss: Likewise.
            ascent_grad_norm: Of shape (), unscaled.
            step: The Trainer's global step.
            filter_nonfinite: Whether the running mean replaces a nan or inf, as in the Trainer's
                own sum.
        """
        losses = {"clean_loss": clean_loss.float(), "perturbed_loss": perturbed_loss.float()}
        if filter_nonfinite:
            for name, loss in losses.items():
                mean = torch.zeros_like(loss) + getattr(self, name) / (1 + self.steps)
                losses[name] = torch.where(torch.isfinite(loss), loss, mean)
        return StepLog(
            last_step=step,
            clean_loss=self.clean_loss + losses["clean_loss"],
            perturbed_loss=self.perturbed_loss + losses["perturbed_loss"],
            ascent_grad_norm=self.ascent_grad_norm + ascent_grad_norm.float(),
            ascents=self.ascents + 1,
            steps=self.steps + (step != self.last_step),
        )

    def sums(self, device: torch.device) -> Tensor:
        """Return the three sums and the number of perturbations as (1, 4), to be gathered."""
        sums = (self.clean_loss, self.perturbed_loss, self.ascent_grad_norm, float(self.ascents))
        return torch.stack([torch.as_tensor(s, device=device).float() for s in sums]).unsqueeze(0)
