"""The order of SAM's two passes inside the Trainer's training step."""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.training_args import OptimizerNames

from .config import SAMArguments
from .distributed import require_supported
from .model_card import add_sam_to_card
from .perturbation import compute_perturbation, gradient_norm, perturbed, take_gradients
from .replay import random_state, replayed, running_stats_kept, running_stats_undone_on_error
from .step_log import StepLog

if TYPE_CHECKING:
    from transformers import Trainer as AnyTrainer  # what the mixin is mixed into
else:
    AnyTrainer = object


class SAMMixin(AnyTrainer):
    """Sharpness-Aware Minimization for any Trainer: `class MyTrainer(SAMMixin, SomeTrainer)`.

    Every `training_step` makes two forward-backward passes, at w and at w + epsilon, and leaves the
    gradient of the second for the Trainer to clip and the base optimizer to apply. The base
    optimizer, its state and its schedule are never touched. The settings are `args` where that is a
    `SAMArguments`, and their defaults where it is not; `rho=0` is the plain Trainer.

    Source: Foret et al., arXiv 2010.01412, algorithm 1. Cost: two forward-backward passes, and the
    memory of one copy of the trainable parameters.
    """

    _step_log = StepLog()  # frozen: each training starts its own

    @property
    def sam_arguments(self) -> SAMArguments:
        """SAM's settings: `args` itself, or the defaults beside plain `TrainingArguments`."""
        return self.args if isinstance(self.args, SAMArguments) else SAMArguments()

    def training_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Make the clean and the perturbed pass on one micro-batch.

        Args:
            model: The prepared model.
            inputs: One micro-batch. Each pass prepares a copy of its own, as a Trainer may change
                the mapping it is given.
            num_items_in_batch: The Trainer's count of label items in the window.

        Returns:
            The clean loss of shape (), scaled and detached as the plain Trainer returns it.
        """
        sam = self.sam_arguments
        if sam.rho == 0:
            return super().training_step(model, inputs, num_items_in_batch)
        params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        draws = random_state(param.device for param in model.parameters())
        with running_stats_undone_on_error(model):
            window_grad = take_gradients(params.values())
            with self.accelerator.no_sync(model):
                clean_loss = super().training_step(model, copy.copy(inputs), num_items_in_batch)
            clean_grad = take_gradients(params.values())
            for param, grad in zip(params.values(), window_grad, strict=True):
                param.grad = grad
            ascent_grad_norm = gradient_norm(clean_grad)
            perturbation = compute_perturbation(
                params,
                clean_grad,
                rho=sam.rho,
                adaptive=sam.adaptive,
                eta=sam.eta,
                perturbation_norm=sam.perturbation_norm,
            )
            with (
                perturbed(params.values(), perturbation),
                replayed(draws) if sam.replay_rng else nullcontext(),
                running_stats_kept(model),
            ):
                del clean_grad, perturbation  # their memory is the perturbed pass's to use
                perturbed_loss = super().training_step(model, copy.copy(inputs), num_items_in_batch)
        ascent_grad_norm = ascent_grad_norm / self._loss_scale(inputs, num_items_in_batch)
        self._step_log = self._step_log.add(
            clean_loss,
            perturbed_loss,
            ascent_grad_norm,
            step=self.state.global_step,
            filter_nonfinite=self.args.logging_nan_inf_filter,
        )
        return clean_loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and add to a training entry what the two passes found out since the last one.

        `perturbed_loss` is averaged exactly as the Trainer's `loss` is, `sharpness` is their
        difference, and `ascent_grad_norm` is the L2 norm of the clean gradient of the micro-batch's
        mean loss, averaged over perturbations and ranks. (It is too large by the number of
        micro-batches where a model accepts `num_items_in_batch` and then ignores it, which the
        Trainer cannot know either.) All are averages over the steps that had a perturbation.

        Args:
            logs: The entry; changed in place.
            start_time: When training started, which the Trainer gives with training entries only.
        """
        if start_time is not None and "loss" in logs and self._step_log.ascents:
            sums = self.accelerator.gather(self._step_log.sums(self.args.device))
            clean, moved, norm, ascents = sums.double().sum(dim=0).tolist()
            steps = len(sums) * self._step_log.steps
            logs["perturbed_loss"] = moved / steps
            logs["sharpness"] = (moved - clean) / steps
            logs["ascent_grad_norm"] = norm / ascents
            self._step_log = StepLog()
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Count the operations of both passes over `inputs`, in FLOPs."""
        passes = 2 if self.sam_arguments.rho > 0 else 1
        return int(passes * super().floating_point_ops(inputs))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the Trainer's model card, with SAM's settings, tags and citation added.

        Args:
            *args: As the Trainer's own method takes them.
            **kwargs: Likewise.
        """
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero() and self.sam_arguments.rho > 0:
            add_sam_to_card(Path(self.args.output_dir) / "README.md", self.sam_arguments)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader[Any]]:
        """Check, once model and backend are known, that SAM can train them."""
        sam = self.sam_arguments
        sam.require_valid_fields()
        model, train_dataloader = super()._prepare_for_training(
            max_steps, train_dataloader, resume_from_checkpoint
        )
        if sam.rho > 0:
            require_supported(
                self.accelerator.distributed_type.value,
                devices=self.args.n_gpu,
                optimizer=OptimizerNames(self.args.optim).value,
                params=model.parameters(),
            )
        self._step_log = StepLog()
        return model, train_dataloader

    def _loss_scale(
        self, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor | float:
        """Return what multiplied the micro-batch's mean loss before backward, of shape ()."""
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.args.device))
        counted = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        if not counted or num_items_in_batch is None:
            steps = self.current_gradient_accumulation_steps
            return scale if self.compute_loss_func is not None else scale / steps
        labels = inputs.get("shift_labels")
        if labels is None:
            labels = inputs["labels"][..., 1:] if self._loss_shifts_labels else inputs["labels"]
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        items = labels.ne(-100).sum().clamp(min=1)  # one without labels has no gradient anyway
        return scale * items * ranks / num_items_in_batch


class SAMTrainer(SAMMixin, Trainer):
    """The Trainer with Sharpness-Aware Minimization; `args` is a `SAMConfig`."""
