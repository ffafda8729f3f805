"""The images on which settings are chosen: a tenth of the training images, or a split."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..finetuning.fields import DataOptions
from ..finetuning.loading import eval_split_of, find_splits, task_of

HELD_OUT = "0.1"  # of the training images, as in section 3.1 of arXiv 2010.01412


@dataclass(frozen=True)
class Choosing:
    """The extra options of trial runs (to choose settings) and of final runs (to be measured)."""

    trial: Mapping[str, str]
    final: Mapping[str, str]

    @classmethod
    def on(cls, split: str | None, data: DataOptions) -> "Choosing":
        """Choose on a split, and train final runs on it too; None: choose on a held-out tenth."""
        if split is None:
            return cls(trial={"holdout": HELD_OUT}, final={})
        if data.eval_share is not None:
            raise ValueError("`sweep_split` and `eval_share` exclude each other: leave one out.")
        chosen_on, trained_on = split.split("+"), task_of(data).train_split.split("+")
        rest = [part for part in trained_on if part not in chosen_on]
        if not rest:
            raise ValueError(
                f"`sweep_split` must leave something to train on, got {split}, which is all of "
                "`train_split`: name the split that is for choosing settings."
            )
        return cls(
            trial={"train_split": "+".join(rest), "eval_split": split},
            final={"train_split": "+".join(dict.fromkeys([*trained_on, *chosen_on]))},
        )


def require_split_for_choosing(split: str, data: DataOptions) -> None:
    """Check that settings can be chosen on a split.

    Raises:
        ValueError: If the data have no such split, or it is the evaluation split.
    """
    task = task_of(data)
    chosen_on = split.split("+")
    found = find_splits(data, task, asked=chosen_on)
    measured_on = eval_split_of(task, found)
    if missing := [part for part in chosen_on if part not in found]:
        raise ValueError(
            f"`sweep_split` must be a split of the data, got {missing[0]}: there are "
            f"{', '.join(found)}. Leave it out to choose on a tenth of the training images."
        )
    if shared := set(chosen_on) & set(measured_on.split("+")):
        trained_on = task.train_split.split("+")
        others = [name for name in found if name not in {*shared, *trained_on}]
        remedy = f"pass {' or '.join(others)}" if others else "leave it out"
        raise ValueError(
            f"`sweep_split` must not be the split that results are measured on, got {split}: "
            f"{remedy}, or pass another `--eval_split`."
        )
