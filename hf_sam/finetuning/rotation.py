"""Checkpoint rotation that keeps complete checkpoints only, instead of the Trainer's."""

import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .checkpoints import whole_checkpoints

STATE = "trainer_state.json"


class CheckpointRotation(TrainerCallback):
    """Keeps the newest complete checkpoints and removes older ones.

    The Trainer's own rotation counts incomplete ones too, and orders them by the folders' times,
    which are the same for two that are written within a second.
    """

    def __init__(self, limit: int | None) -> None:
        """Set how many to keep, the best one in addition; None, 0 or less keeps all."""
        self.limit = max(0, limit or 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove an incomplete checkpoint of a killed run before the same one is written."""
        if not control.should_save:
            return
        old = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if args.should_save and old.is_dir():
            remove(old)
        PartialState().wait_for_everyone()  # other processes write into it too

    on_epoch_end = on_step_end

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the oldest checkpoints, after a newer one is complete."""
        if not (self.limit and args.should_save):
            return
        best = Path(state.best_model_checkpoint or "").name
        whole = whole_checkpoints(Path(args.output_dir))
        whole.sort(key=lambda checkpoint: (checkpoint / STATE).stat().st_mtime_ns)
        kept = {f"checkpoint-{state.global_step}", best} & {path.name for path in whole}
        old = [path for path in whole if path.name not in kept]
        for checkpoint in old[: max(0, len(whole) - max(self.limit, len(kept)))]:
            remove(checkpoint)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, its Trainer state first, so that a partial removal shows."""
    if checkpoint.is_symlink():
        checkpoint.unlink()
        return
    (checkpoint / STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)
