"""The order of SAM's two passes inside the Trainer's training step."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.training_args import OptimizerNames
from transformers.utils import is_sagemaker_mp_enabled

from .config import SAMArguments
from .distributed import (
    leave_buckets,
    leave_buffers_alone,
    require_supported_backend,
    require_supported_model,
)
from .model_card import add_sam_to_card
from .perturbation import (
    compute_perturbation,
    gradient_norm,
    gradients_set_aside,
    perturbed,
    put_gradients,
    take_gradients,
)
from .replay import random_state, replayed, restorer, running_stats_kept
from .step_log import StepLog
from .window import MicroBatch, Window

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
    _window: Window | None = None

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
        """Make the clean pass on one micro-batch, and the perturbed passes that are then due.

        In micro_batch scope that is one; in rank and global scope the last micro-batch of the
        window brings those of the whole window. The weights are w again when this returns or
        raises; after an exception the buffers are as before the window.

        Args:
            model: The prepared model.
            inputs: One micro-batch. Each pass prepares a copy of its own, as a Trainer may change
                the mapping it is given.
            num_items_in_batch: The Trainer's count of label items in the window.

        Returns:
            The clean loss of shape (), scaled and detached as the plain Trainer returns it.
        """
        if self.sam_arguments.rho == 0:
            return super().training_step(model, inputs, num_items_in_batch)
        params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        with self._current_window(model) as window:
            draws = random_state(param.device for param in model.parameters())
            micro_batch = MicroBatch(inputs, num_items_in_batch, draws)
            if self._scope == "global":
                leave_buckets(params.values())
            with gradients_set_aside(params.values()):
                put_gradients(params.values(), window.clean_grad)
                clean_loss = self._pass(model, micro_batch, reduced=self._scope == "global")
                window.clean_grad = take_gradients(params.values())
            window.clean_losses.append(clean_loss)
            window.group.append(micro_batch)
            window.steps += 1
            if self._scope == "micro_batch" or window.steps == window.length:
                self._descend_from_perturbed(model, params, window)
        return clean_loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Fetch the next window, whatever became of the last one.

        Args:
            epoch_iterator: The micro-batches of the epoch.
            num_batches: How many to fetch; there may be fewer left.
            device: Where the count of items is put.

        Returns:
            The micro-batches, and the Trainer's count of label items in them.
        """
        self._window = None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

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
        """Check, once backend and then model are known, that SAM can train them."""
        self._step_log, self._window = StepLog(), None
        sam = self.sam_arguments
        sam.require_valid_fields()
        if sam.rho == 0:
            return super()._prepare_for_training(
                max_steps, train_dataloader, resume_from_checkpoint
            )
        sagemaker = is_sagemaker_mp_enabled()  # of which accelerate knows nothing
        require_supported_backend(
            "SAGEMAKER_MP" if sagemaker else self.accelerator.distributed_type.value,
            devices=self.args.n_gpu,
            optimizer=OptimizerNames(self.args.optim).value
            if self.optimizer is None
            else type(self.optimizer).__name__.lower(),
            ranks_per_batch={"context": self.get_cp_size(), "sequence": self.get_sp_size()},
        )
        model, train_dataloader = super()._prepare_for_training(
            max_steps, train_dataloader, resume_from_checkpoint
        )
        require_supported_model(
            model, scope=self._scope, accumulation=self.args.gradient_accumulation_steps
        )
        return model, train_dataloader

    @property
    def _scope(self) -> str:
        return self.sam_arguments.ascent_scope or "micro_batch"

    @contextmanager
    def _current_window(self, model: nn.Module) -> Iterator[Window]:
        """Give the window that a training step belongs to, and forget it when it ends or fails."""
        if self._window is None:
            length = self.current_gradient_accumulation_steps
            self._window = Window(length=length, undo_stats=restorer(model))
        window = self._window
        try:
            yield window
        except BaseException:  # Ctrl-C too must leave the model as before the step
            window.undo_stats()
            self._window = None
            raise
        if window.steps == window.length:
            self._window = None

    def _pass(self, model: nn.Module, micro_batch: MicroBatch, *, reduced: bool) -> Tensor:
        """Make one forward-backward pass; `reduced` lets ranks synchronise where the Trainer does.

        Returns:
            The loss of shape (), as the plain Trainer's training step returns it.
        """
        with nullcontext() if reduced else self.accelerator.no_sync(model):
            inputs = copy.copy(micro_batch.inputs)
            return super().training_step(model, inputs, micro_batch.num_items_in_batch)

    def _descend_from_perturbed(
        self, model: nn.Module, params: dict[str, nn.Parameter], window: Window
    ) -> None:
        """Add to `p.grad` the gradients at w + epsilon of the micro-batches that share epsilon."""
        sam, group, clean_grad = self.sam_arguments, window.group, window.clean_grad
        assert clean_grad is not None
        ascent_grad_norm = gradient_norm(clean_grad) / self._loss_scale(group)
        perturbation = compute_perturbation(
            params,
            clean_grad,
            rho=sam.rho,
            adaptive=sam.adaptive,
            eta=sam.eta,
            perturbation_norm=sam.perturbation_norm,
        )
        losses = []
        with perturbed(params.values(), perturbation), running_stats_kept(model):
            del clean_grad, perturbation  # their memory is the perturbed passes' to use
            window.clean_grad = None
            leave_buffers_alone(model)
            for micro_batch in group:
                with replayed(micro_batch.draws) if sam.replay_rng else nullcontext():
                    losses.append(self._pass(model, micro_batch, reduced=micro_batch is group[-1]))
        self._step_log = self._step_log.add(
            window.clean_losses,
            losses,
            ascent_grad_norm,
            step=self.state.global_step,
            filter_nonfinite=self.args.logging_nan_inf_filter,
        )
        window.group, window.clean_losses = [], []

    def _loss_scale(self, group: Sequence[MicroBatch]) -> Tensor | float:
        """Return what multiplied the group's mean loss before backward, of shape ()."""
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.args.device))
        counted = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        count = group[0].num_items_in_batch
        if not counted or count is None:
            # the Trainer leaves the mean loss of a compute_loss_func as it is
            steps = self.current_gradient_accumulation_steps
            return scale * len(group) / (1 if self.compute_loss_func is not None else steps)
        if self._scope == "global":
            return scale
        items = torch.stack([self._count_items(micro_batch.inputs) for micro_batch in group]).sum()
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        # a group without labels has no gradient anyway
        return scale * items.clamp(min=1) * ranks / count

    def _count_items(self, inputs: Mapping[str, Any]) -> Tensor:
        """Count one micro-batch's label items, of shape (), as the Trainer does over a window."""
        labels = inputs.get("shift_labels")
        if labels is None:
            labels = inputs["labels"][..., 1:] if self._loss_shifts_labels else inputs["labels"]
        return labels.ne(-100).sum()


class SAMTrainer(SAMMixin, Trainer):
    """The Trainer with Sharpness-Aware Minimization; `args` is a `SAMConfig`."""
