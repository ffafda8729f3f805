"""Checkpoints come whole and the oldest go: in place of the Trainer's rotation."""

import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .checkpoints import whole_checkpoints

STATE = "trainer_state.json"


class Keeping(TrainerCallback):
    """Keeps the newest checkpoints that are whole.

    The Trainer's own rotation counts half-written ones too, and tells them apart by the folders'
    times, which says nothing where two are written within a second.
    """

    def __init__(self, limit: int | None) -> None:
        """Keep this many, and the best one; None or 0 keeps all."""
        self.limit = limit

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clear the place of the checkpoint that is due: a killed run may have begun it."""
        if not control.should_save:
            return
        old = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if args.should_save and old.is_dir():
            remove(old)
        PartialState().wait_for_everyone()  # the others write into it too

    on_epoch_end = on_step_end

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the oldest, now that a newer one is whole."""
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
    """Remove a checkpoint, and first of all what makes it whole."""
    if checkpoint.is_symlink():
        checkpoint.unlink()
        return
    (checkpoint / STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)
