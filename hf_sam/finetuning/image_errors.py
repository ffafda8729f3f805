"""The images that a finished model gets wrong, for paired tests of two models."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from transformers import EvalPrediction

from ..metrics import compute_metrics, image_errors
from ..reporting.json_files import read_json, write_json
from ..vision import Splits

ERRORS = "errors.json"  # beside the run's record
REMEDY = "restore it, or remove the folder it is in and train anew"


@dataclass(frozen=True)
class ErrorsOfRun:
    """Results of a run's last evaluation, image by image."""

    split: str
    examples: int
    wrong: Sequence[int]  # rows of the split that the model misclassifies
    class_accuracy: Mapping[str, float | None]  # top-1 of each class, in percent

    @classmethod
    def of(cls, prediction: EvalPrediction, splits: Splits) -> Self:
        """Convert positions in the evaluation data to rows of the split, and classes to names."""
        found, rows = image_errors(prediction, len(splits.label_names)), list(splits.eval["index"])
        return cls(
            split=splits.eval_split,
            examples=len(rows),
            wrong=sorted(rows[position] for position in found.wrong),
            class_accuracy=dict(zip(splits.label_names, found.class_accuracy, strict=True)),
        )

    def write(self, folder: Path) -> None:
        """Write the errors to a run's folder, beside its record."""
        write_json(folder / ERRORS, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read what `write` wrote; None if a run has no such file.

        Raises:
            ValueError: If the file is truncated, edited or something else.
        """
        path = folder / ERRORS
        if not path.exists():
            return None
        return read_json(path, cls, remedy=REMEDY)


class LastEvaluation:
    """Computes the Trainer's metrics, and keeps the predictions of the last evaluation."""

    def __init__(self) -> None:
        """Begin without an evaluation."""
        self.prediction: EvalPrediction | None = None

    def __call__(self, prediction: EvalPrediction) -> dict[str, Any]:
        """Compute the metrics."""
        self.prediction = prediction
        return compute_metrics(prediction)
