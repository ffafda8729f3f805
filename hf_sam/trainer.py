"""The order of SAM's two passes inside the Trainer's training step."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Trainer

from .ascent.perturbation import take_gradients
from .ascent.schedule import AscentSchedule
from .averaging import AverageMixin
from .config import SAMArguments
from .reporting.model_card import add_sam_to_card
from .step.ascent import Ascent
from .step.checks import (
    base_optimizer,
    check_backend,
    check_model,
    leave_evaluation,
    require_called,
)
from .step.counted import COUNTED_ONCE
from .step.inputs import copied
from .step.loss_scale import loss_scale
from .step.memory_file import load_memory, save_memory
from .step.overflow import overflow_kept
from .step.overhead import Overhead
from .step.parts import Parts, PartsCache
from .step.planning import planned_schedule
from .step.replay import replayed
from .step.share import share_of
from .step.step_log import StepLog
from .step.watch import Watch
from .step.window import MicroBatch, Window, last_alone


class SAMMixin(AverageMixin):
    """Sharpness-Aware Minimization for any Trainer: `class MyTrainer(SAMMixin, SomeTrainer)`.

    Each optimizer step's examples go through two forward-backward passes, at w and at w + epsilon,
    and the gradient of the second is left for the Trainer to clip and the base optimizer to apply.
    The base optimizer, its state and its schedule are never touched. The settings are `args` where
    that is a `SAMArguments`, and their defaults where it is not; `rho=0` is the plain Trainer.

    Source: Foret et al., arXiv 2010.01412, algorithm 1. Cost: two forward-backward passes, and the
    memory of one copy of the trainable parameters.
    """

    counted_once = COUNTED_ONCE  # attributes that keep what the pass at w makes of them
    train_overhead: float | None = None  # the last training's time over that without SAM's part
    _step_log = StepLog()  # frozen: each training starts its own
    ascent_schedule = AscentSchedule()
    _ascent = Ascent(SAMArguments())
    _overhead, _parts_cache, _watch = Overhead(torch.device("cpu")), PartsCache(), Watch()
    _window: Window | None = None
    _last_inputs: Any = None  # of the window that the Trainer has fetched
    _resumed_from: str | None = None  # the checkpoint, while `train` runs
    _is_called: bool | None = None  # `training_step`, since the first window was fetched
    current_gradient_accumulation_steps = 1  # until the Trainer fetches a window

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
        raises; after an exception the buffers are as before the optimizer step.

        Args:
            model: The prepared model.
            inputs: One micro-batch. Each pass prepares a copy, as Trainers and models change it.
            num_items_in_batch: The Trainer's count of label items in the window.

        Returns:
            The clean loss of shape (), scaled and detached as the plain Trainer returns it.
        """
        self._is_called = True
        acts = self.sam_arguments.rho > 0 and self._ascent.method.acts_at_every_step
        if self._rho == 0 and self._window is None and not acts:
            return super().training_step(model, inputs, num_items_in_batch)
        if not self._ascent.is_ready:  # rho was 0 when training started, or it has not
            self._check_model(model)
        leave_evaluation(model, self.optimizer)
        parts = self._parts_cache.parts_of(model, self)
        with self._overhead.step(), parts.engine.step():
            window, micro_batch = self._window_of(parts), MicroBatch(inputs, num_items_in_batch)
            with window.undone_if_it_fails():
                if self._ascent.method.has_clean_pass and (self._rho > 0 or window.group):
                    loss = self._clean_pass(model, parts, window, micro_batch)
                else:
                    loss = self._only_pass(model, parts, micro_batch)
                window.count(is_last=inputs is self._last_inputs)
                if window.group and (window.scope == "micro_batch" or window.is_complete):
                    self._descend_from_perturbed(model, parts, window)
                if window.is_complete:
                    self._finish(parts, window)
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Fetch the next window as the plain Trainer does; what an unfinished one held is lost."""
        if self._window is not None:
            self._window.warn_if_lost(self.state.global_step)
            self._parts_cache.drop_gathered()
        self._window = None
        require_called(self, SAMMixin, is_called=self._is_called)
        micro_batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if micro_batches:
            self._is_called = self._is_called or self.sam_arguments.rho == 0
        self._last_inputs = last_alone(micro_batches)
        return micro_batches, items

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the plain Trainer does, and return `train_overhead` too: no entry of the log."""
        try:
            output = super().train(*args, **kwargs)
            require_called(self, SAMMixin, is_called=self._is_called)
        finally:
            self._forget()
        if self.sam_arguments.rho > 0:
            allowed = self.sam_arguments.max_overhead if self.ascent_schedule.fraction < 1 else None
            self.train_overhead = self._overhead.noted_in(output, allowed=allowed)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with what the two passes have found out since the last entry: `StepLog.entries`."""
        if start_time is not None and "loss" in logs and self._step_log.ascents:
            sums = self._step_log.sums(self.args.device, self._ascent.fidelity)
            logs.update(self._step_log.entries(self.accelerator.gather(sums)))
            self._step_log, self._ascent.fidelity = StepLog(), None
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Count the operations of all passes over `inputs`, in FLOPs."""
        passes = 1.0 + (self._rho > 0) * self.ascent_schedule.realised_fraction
        return int(passes * super().floating_point_ops(inputs))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the Trainer's model card, with SAM's settings, tags and citation added."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero() and self.sam_arguments.rho > 0:
            add_sam_to_card(self.args.output_dir, self.sam_arguments, self.ascent_schedule)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader[Any]]:
        """Check, once backend and then model are known, that SAM can train them."""
        self._forget()
        self._step_log, self.ascent_schedule = StepLog(), AscentSchedule()
        self.train_overhead, self._resumed_from = None, resume_from_checkpoint
        self.sam_arguments.require_valid_fields()
        if self.sam_arguments.rho > 0:
            check_backend(self, self.sam_arguments)  # before a backend fails in its own words
        found = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.sam_arguments.rho > 0:
            self._check_model(found[0])
        return found

    def _forget(self) -> None:  # a window may be left unfinished, and the model is to be freed
        self._window = self._last_inputs = self._resumed_from = self._is_called = None
        self._ascent, self._watch, self._parts_cache = Ascent(SAMArguments()), Watch(), PartsCache()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._parts_cache.forget()  # callbacks may have put anything in place since the last epoch
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:  # a run that had ended is resumed: the Trainer would make one more step
            self.control.should_training_stop = True

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        save_memory(self._ascent, output_dir, writes=self.args.should_save)

    def _check_model(self, model: nn.Module) -> None:
        check_backend(self, self.sam_arguments)
        self._overhead, self._parts_cache = Overhead(self.args.device), PartsCache()
        self._watch = Watch(is_twice=self.sam_arguments.chosen_method.has_clean_pass)
        parts = self._parts_cache.parts_of(model, self)
        check_model(self, self.sam_arguments, model, parts)
        bare = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        self._ascent = Ascent(self.sam_arguments, bare, self.accelerator, parts.engine)
        self.ascent_schedule = planned_schedule(self, self.sam_arguments, parts)
        load_memory(self._ascent, self._resumed_from, parts.params)

    @property
    def gradient_evaluations(self) -> int:
        """Forward-backward passes over an effective batch so far; the steps if `rho` is 0 now."""
        steps = self.state.global_step
        return round(self.ascent_schedule.passes(steps)) if self.sam_arguments.rho > 0 else steps

    @property
    def _rho(self) -> float:
        """The radius at this optimizer step; 0 where it is the base optimizer's."""
        return self.sam_arguments.rho * self.ascent_schedule.share_at(self.state.global_step)

    def _window_of(self, parts: Parts) -> Window:
        """Return the window that a training step belongs to."""
        if self._window is None or self._window.is_complete:  # an exception came after its passes
            default = parts.engine.default_scope or self._ascent.method.scope
            scope = self.sam_arguments.ascent_scope or default
            length, step = self.current_gradient_accumulation_steps, self.state.global_step
            self._window = Window(scope, length, step, parts.buffers, list(parts.trainable))
            if self._ascent.method.changes_gradient:
                self._window.leftovers = take_gradients(parts.trainable.values())
        return self._window.aligned(list(parts.trainable))

    def _pass(self, model: nn.Module, parts: Parts, given: MicroBatch, *, reduced: bool) -> Tensor:
        """Make a plain training step; `reduced` lets ranks synchronise where the Trainer does."""
        alone = parts.engine.one_pass(self.accelerator, reduced=reduced)
        with self._watch.of_pass(parts, self.counted_once), alone:
            inputs, items = copy.copy(given.inputs), given.num_items_in_batch
            return super().training_step(model, inputs, items).clone()  # CUDA graphs overwrite it

    def _clean_pass(
        self, model: nn.Module, parts: Parts, window: Window, micro_batch: MicroBatch
    ) -> Tensor:
        """Add a micro-batch's gradient at w to the window's, and return its loss."""
        weights, engine, is_global = parts.weights, parts.engine, window.scope == "global"
        is_whole = self.ascent_schedule.fraction == 1
        share = copied(share_of(self, micro_batch, self.ascent_schedule))
        engine.before_clean_pass(weights, reduced=is_global)
        is_unmoved = window.steps == 0 and not engine.broadcasts_buffers
        start = parts.start(window.before if is_unmoved else None)
        undone = nullcontext() if is_whole else parts.undone(start)
        with engine.gradients_apart(weights, parts.others, window.clean_grad):
            with undone, self._ascent.backward_as_far_as_used(weights, engine, reduced=is_global):
                loss = self._pass(model, parts, share, reduced=is_global)
            gathered = engine.take_gradients(weights)
            # of a reduced window DDP wants all back that earlier micro-batches have given
            window.clean_grad = gathered if is_global else self._ascent.used(weights, gathered)
        window.add(micro_batch, start, loss)
        return loss

    def _only_pass(self, model: nn.Module, parts: Parts, micro_batch: MicroBatch) -> Tensor:
        """Make the pass at w + epsilon where epsilon is known without a clean pass."""
        perturbation = self._ascent.from_memory(parts.weights, base_optimizer(self), rho=self._rho)
        with parts.engine.perturbed(parts.weights, perturbation, saved=self._saved_w):
            del perturbation
            with self._overhead.plain_pass():
                return self._pass(model, parts, micro_batch, reduced=True)

    def _descend_from_perturbed(self, model: nn.Module, parts: Parts, window: Window) -> None:
        """Add to `p.grad` the gradients at w + epsilon of the micro-batches that share epsilon."""
        weights, engine, rho = parts.weights, parts.engine, self._rho
        scale = loss_scale(self, window) * engine.loss_scale()
        is_whole = self.ascent_schedule.fraction == 1
        replays = self.sam_arguments.replay_rng and is_whole  # of a share other masks are drawn
        if window.scope == "global":
            window.average_over_ranks(weights, parts.outside, self.accelerator)
        group, clean_losses, clean_grad = window.take_group()
        window.kept_clean_grad = self._ascent.kept(clean_grad)
        perturbation, norm = self._ascent.from_clean_grad(weights, clean_grad, rho=rho, scale=scale)
        losses, kept = [], overflow_kept(self.accelerator, perturbation, norm)
        with kept, engine.perturbed(weights, perturbation, saved=self._saved_w):
            del clean_grad, perturbation  # their memory is the perturbed passes' to use
            engine.before_perturbed_passes()
            for i, (micro_batch, start) in enumerate(group, start=1):
                undone = parts.undone(start) if is_whole else nullcontext()
                repeats = replayed(start.draws) if replays else nullcontext()
                with self._overhead.plain_pass(), undone, repeats:
                    losses.append(self._pass(model, parts, micro_batch, reduced=i == len(group)))
        if is_whole:  # or the losses are not of the same examples
            found, filters = (clean_losses, losses, norm), self.args.logging_nan_inf_filter
            step = self.state.global_step
            self._step_log = self._step_log.add(*found, step=step, filter_nonfinite=filters)

    def _finish(self, parts: Parts, window: Window) -> None:
        """Leave in `p.grad` what the base optimizer descends along, and forget the window."""
        if self._ascent.method.changes_gradient:
            with parts.engine.descent_gradients(parts.weights):
                self._ascent.finish(parts.weights, window.kept_clean_grad)
        window.add_leftovers(parts.trainable, parts.outside, self.accelerator)
        parts.buffers.look(window.before)
        if self._watch.end_step():
            self._parts_cache.forget()
        parts.engine.end_step()
        self._window = None


class SAMTrainer(SAMMixin, Trainer):
    """The Trainer with Sharpness-Aware Minimization; `args` is a `SAMConfig`."""


class SAMSeq2SeqTrainer(SAMMixin, Seq2SeqTrainer):
    """The Seq2SeqTrainer with SAM; `args` is a `SAMSeq2SeqConfig`."""
