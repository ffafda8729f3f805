"""Sums for the training log since its last entry, kept on the device until they are logged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepLog:
    """One rank's sums over its perturbations since the last log entry."""

    last_step: int = -1  # the Trainer's global step at the last perturbation
    clean_loss: Tensor | float = 0.0  # () in the unit of the Trainer's own loss sum
    perturbed_loss: Tensor | float = 0.0  # () likewise
    ascent_grad_norm: Tensor | float = 0.0  # () L2 norm of the mean loss's clean gradient
    ascents: int = 0  # perturbations
    steps: int = 0  # optimizer steps that had one

    def add(
        self,
        clean_losses: Sequence[Tensor],
        perturbed_losses: Sequence[Tensor],
        ascent_grad_norm: Tensor,
        *,
        step: int,
        filter_nonfinite: bool,
    ) -> "StepLog":
        """Return the sums with those of one perturbation added, without synchronising.

        Args:
            clean_losses: Of shape (), one for each micro-batch that shares it, as the Trainer sums.
            perturbed_losses: Likewise.
            ascent_grad_norm: Of shape (), unscaled.
            step: The Trainer's global step.
            filter_nonfinite: Whether to replace nan and inf by the running mean, as the Trainer
                does (`logging_nan_inf_filter`); both losses where one or the norm is not finite.
        """
        steps_before = self.steps - (step == self.last_step)
        norm, totals = ascent_grad_norm.float(), [self.clean_loss, self.perturbed_loss]
        for losses in zip(clean_losses, perturbed_losses, strict=True):
            pair = torch.stack([loss.float() for loss in losses])
            if filter_nonfinite:
                means = [torch.zeros_like(pair[0]) + total / (1 + steps_before) for total in totals]
                is_known = pair.isfinite().all() & norm.isfinite().to(pair.device)
                pair = torch.where(is_known, pair, torch.stack(means))
            totals = [total + loss for total, loss in zip(totals, pair, strict=True)]
        if filter_nonfinite:
            mean = self.ascent_grad_norm / max(self.ascents, 1)
            norm = torch.where(norm.isfinite(), norm, torch.zeros_like(norm) + mean)
        return StepLog(
            last_step=step,
            clean_loss=totals[0],
            perturbed_loss=totals[1],
            ascent_grad_norm=self.ascent_grad_norm + norm,
            ascents=self.ascents + 1,
            steps=self.steps + (step != self.last_step),
        )

    def entries(self, of_ranks: Tensor) -> dict[str, float]:
        """Return the log entries, averaged over the steps that had a perturbation.

        `perturbed_loss` is averaged as the Trainer's `loss` is, `sharpness` is perturbed minus
        clean, and `ascent_grad_norm` the L2 norm of the clean gradient of the mean loss in the
        perturbed parameters, averaged over perturbations and ranks. (It is off where a model
        accepts `num_items_in_batch` and ignores it, unless `loss_is_scaled_for_ga` is False.) For
        weights of fewer bits than float32, `perturbation_fidelity` is the share of the norm that
        rounding left and `perturbation_cosine` says how well it kept the direction, both at the
        first perturbation.

        Args:
            of_ranks: Of shape (ranks, 6), each row from `sums`. Synchronises with the host.
        """
        of_ranks = of_ranks.cpu()  # Apple's GPUs have no float64
        clean, moved, norm, ascents, _, _ = of_ranks.double().sum(dim=0).tolist()
        steps = len(of_ranks) * self.steps
        entries = {
            "perturbed_loss": moved / steps,
            "sharpness": (moved - clean) / steps,
            "ascent_grad_norm": norm / ascents,
        }
        ratio, cosine = of_ranks[:, 4:].nanmean(dim=0).tolist()
        if not math.isnan(ratio):
            entries |= {"perturbation_fidelity": ratio, "perturbation_cosine": cosine}
        return entries

    def sums(self, device: torch.device, fidelity: Tensor | None) -> Tensor:
        """Return the three sums, the number of perturbations and the fidelity as one tensor.

        Args:
            device: Of the result.
            fidelity: Of shape (2,), of the first perturbation; None where it is unknown.

        Returns:
            Of shape (1, 6), to be gathered; nan for an unknown fidelity.
        """
        known = [math.nan, math.nan] if fidelity is None else fidelity.tolist()
        sums = (
            self.clean_loss,
            self.perturbed_loss,
            self.ascent_grad_norm,
            self.ascents,
            *known,
        )
        return torch.stack([torch.as_tensor(s, device=device).float() for s in sums]).unsqueeze(0)
