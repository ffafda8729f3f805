"""How long a run has trained, over all its interruptions."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class Stopwatch(TrainerCallback, ExportableState):
    """Counts the seconds of training; a checkpoint keeps what has been counted."""

    def __init__(self) -> None:
        """Start from nothing."""
        self.before = 0.0  # seconds until the run was last resumed
        self.started: float | None = None

    @property
    def seconds(self) -> float:
        """Wall time of training in seconds, checkpoints and evaluations in between included."""
        return self.before + (0.0 if self.started is None else time.monotonic() - self.started)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start."""
        self.started = time.monotonic()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop."""
        self.before, self.started = self.seconds, None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {}, "attributes": {"before": self.seconds}}
