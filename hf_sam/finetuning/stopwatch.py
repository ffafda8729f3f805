"""The training time of a run, summed over its interruptions."""

import time
from typing import Any

from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState


class Stopwatch(TrainerCallback, ExportableState):
    """Measures the seconds of training; checkpoints store the time so far."""

    def __init__(self) -> None:
        """Start at zero."""
        self.before = 0.0  # seconds until the run was last resumed
        self.started: float | None = None
        self.has_begun = False  # whether this process has begun to train

    @property
    def seconds(self) -> float:
        """Wall time of training in seconds, including checkpoints and evaluations."""
        return self.before + (0.0 if self.started is None else time.monotonic() - self.started)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start."""
        self.started, self.has_begun = time.monotonic(), True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop."""
        self.before, self.started = self.seconds, None

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"args": {}, "attributes": {"before": self.seconds}}


def stopwatch_of(trainer: Trainer) -> Stopwatch:
    """Return the stopwatch of a Trainer: resuming replaces the one that was passed."""
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, Stopwatch))
