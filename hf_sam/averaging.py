"""Puts the average of a Trainer's weights in their place: to evaluate, to save, at the end."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from .ascent.perturbation import Saved, at_w
from .average_rule import rule_of
from .backends import engine_of
from .config import SAMArguments
from .step.checks import base_optimizer
from .step.holders import Holders
from .step.weight_average import AVERAGE_FILE, WeightAverage

if TYPE_CHECKING:
    from transformers import Trainer as AnyTrainer  # what the mixin is mixed into
else:
    AnyTrainer = object

logger = logging.get_logger(__name__)


class AverageMixin(AnyTrainer):
    """Averages the weights of a training, by `SAMArguments.weight_average`.

    While it trains, evaluations and predictions are of the average, and so is what `save_model`
    writes; afterwards the model is the average. Checkpoints are the plain Trainer's, with the
    average in a file of its own.

    Source: `torch.optim.swa_utils`; Izmailov et al., arXiv 1803.05407 (SWA). Cost: no pass; a copy
    of the trained weights in float32.
    """

    _average: WeightAverage | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Construct as the other classes do."""
        self._saved_w: Saved = []  # where weights are perturbed: what they were
        super().__init__(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class in which the Trainer's methods would come before those of hf_sam."""
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(AverageMixin):
            mixin = next(b.__name__ for b in cls.__bases__ if issubclass(b, AverageMixin))
            raise TypeError(
                f"{mixin} must come before the Trainer, got {cls.__name__}, which would train "
                f"without it: write `class {cls.__name__}({mixin}, ...)`."
            )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the other classes do, and forget the average, which the model then has."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._average is not None and self._average.count:
                logger.warning(
                    "Training has not ended: the model has the last weights, and not their average."
                )
            self._forget_average()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as the other classes do, the average if there is one."""
        with self._averaged(on_all_ranks=True):
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict as the other classes do, by the average if there is one."""
        with self._averaged(on_all_ranks=True):
            return super().predict(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the average if there is one, in a checkpoint beside the weights.

        The weights are w also where the handler of a signal saves in the midst of a perturbed pass,
        except under DeepSpeed.
        """
        is_checkpoint = _internal_call and output_dir is not None
        with at_w(self._saved_w), nullcontext() if is_checkpoint else self._averaged():
            super().save_model(output_dir, _internal_call)
        if is_checkpoint and self._average is not None:
            self._average.save(str(output_dir), writes=self.args.should_save)
        elif is_checkpoint and self.args.should_save:
            Path(str(output_dir), AVERAGE_FILE).unlink(missing_ok=True)  # of an earlier run

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        prepared = super()._prepare_for_training(
            max_steps, train_dataloader, resume_from_checkpoint
        )
        self._forget_average()  # of an attempt with another batch size
        written = self.args.weight_average if isinstance(self.args, SAMArguments) else None
        if written is not None:
            self._average = self._average_of(prepared[0], written, max_steps)
            if resume_from_checkpoint is not None:
                self._average.load(resume_from_checkpoint)
            # What callbacks make of the weights counts, and at the end they find the average.
            self.add_callback(AfterEachStep(self))
            self.callback_handler.callbacks.insert(0, AtTheEnd(self))
        return prepared

    def _average_of(self, model: Any, written: str, max_steps: int) -> WeightAverage:
        engine, optimizer = engine_of(model), base_optimizer(self)
        if not engine.keeps_memory:
            raise ValueError(
                "`weight_average` must keep a copy of the weights, got DeepSpeed, whose shards "
                "have no place for it: leave it out, or use FSDP2."
            )
        if callable(getattr(optimizer, "eval", None)):
            raise ValueError(
                f"`weight_average` must find the weights that are trained, got "
                f"{type(optimizer).__name__}, which evaluates an average of its own: leave it out."
            )
        if self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END:
            raise ValueError(
                "`weight_average` must be pushed when training has ended, got `hub_strategy="
                f"{HubStrategy(self.args.hub_strategy).value}`, which pushes the weights of "
                "checkpoints: set `hub_strategy=end`, and call `push_to_hub` after `train`."
            )
        bare = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        inside = set(bare.modules())
        found = Holders.of(bare, self).modules.items()
        others = {f"trainer.{name}": module for name, module in found if module not in inside}
        average = WeightAverage(rule_of(written), bare, self.optimizer, engine, max_steps, others)
        average.require_weights()
        return average

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self._average is not None:
            best = str(self.state.best_model_checkpoint)
            self._average.load(best)
            if not self._average.count:
                logger.warning(f"{best} has no average that counts: the model has its weights.")
                self._average = None

    def _averaged(self, *, on_all_ranks: bool = False) -> AbstractContextManager[None]:
        if self._average is None:
            return nullcontext()
        if on_all_ranks:
            self._average.agree()
        return self._average.applied()

    def _forget_average(self) -> None:
        self._average = None
        for kind in (AfterEachStep, AtTheEnd):
            self.remove_callback(kind)


class AfterEachStep(TrainerCallback):
    """Has a trainer's average count the weights after each optimizer step."""

    def __init__(self, trainer: Trainer) -> None:
        """Follow a trainer with `AverageMixin`."""
        self._trainer: Any = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the weights, unless the step was skipped or is not among those that count."""
        average = self._trainer._average
        was_skipped = self._trainer.accelerator.optimizer_step_was_skipped
        if average is not None and not was_skipped and state.global_step > average.begin:
            average.add()


class AtTheEnd(TrainerCallback):
    """Leaves a trainer's average in the model."""

    def __init__(self, trainer: Trainer) -> None:
        """Follow a trainer with `AverageMixin`."""
        self._trainer: Any = trainer

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Overwrite the weights by their average; warn if no step has counted."""
        average, self._trainer._average = self._trainer._average, None
        if average is not None and average.count:
            average.agree()
            average.put_in_place()
        elif average is not None:
            logger.warning(
                f"`weight_average={average.rule.written}` begins after {average.begin} steps, got "
                f"{state.global_step}, and a model without it: train for longer, or begin earlier."
            )
