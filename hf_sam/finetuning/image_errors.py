"""On which images a finished model errs: what tests need that pair two models by image."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from transformers import EvalPrediction

from ..metrics import compute_metrics, image_errors
from ..reporting.json_files import read_json, write_json
from ..vision import Splits

ERRORS = "errors.json"  # beside the run's record


@dataclass(frozen=True)
class ErrorsOfRun:
    """What the last evaluation of a run came to, image by image."""

    split: str
    examples: int
    wrong: Sequence[int]  # rows of the split whose image the model takes for another class
    class_accuracy: Mapping[str, float | None]  # top-1 of each class, in percent

    @classmethod
    def of(cls, prediction: EvalPrediction, splits: Splits) -> Self:
        """Give the examples the names that they have in the data."""
        found, rows = image_errors(prediction, len(splits.label_names)), list(splits.eval["index"])
        return cls(
            split=splits.eval_split,
            examples=len(rows),
            wrong=sorted(rows[position] for position in found.wrong),
            class_accuracy=dict(zip(splits.label_names, found.class_accuracy, strict=True)),
        )

    def write(self, folder: Path) -> None:
        """Write it beside the run's record."""
        write_json(folder / ERRORS, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read what `write` wrote; None where a run has not written it.

        Raises:
            ValueError: If the file is cut short, edited or of something else.
        """
        path = folder / ERRORS
        if not path.exists():
            return None
        return read_json(
            path, cls, remedy="restore it, or remove the folder it is in and train anew"
        )


class LastEvaluation:
    """Computes the Trainer's metrics, and keeps what the last ones were computed from."""

    def __init__(self) -> None:
        """Begin before any evaluation."""
        self.prediction: EvalPrediction | None = None

    def __call__(self, prediction: EvalPrediction) -> dict[str, Any]:
        """Compute the metrics."""
        self.prediction = prediction
        return compute_metrics(prediction)
