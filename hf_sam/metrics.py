"""Top-1 and top-5 error and mean per-class accuracy as `evaluate` metrics, without downloads."""

from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import EvalPrediction

TOP = 5  # classes kept of each prediction: enough for every metric here

Integers = NDArray[np.int64]


class _RankedClasses(evaluate.Metric):
    """A metric of ranked classes, (N, <= TOP), best first, against N labels; in percent."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )


class TopKError(_RankedClasses):
    """Share of examples whose label is not among the first k classes, in percent."""

    def _compute(
        self, *, predictions: Integers, references: Integers, k: int = 1
    ) -> dict[str, float]:
        hits = (np.asarray(predictions)[:, :k] == np.asarray(references)[:, None]).any(axis=1)
        return {f"top{k}_error": 100.0 * float(1.0 - hits.mean())}


class MeanClassAccuracy(_RankedClasses):
    """Top-1 accuracy of each class that has examples, averaged over classes, in percent."""

    def _compute(self, *, predictions: Integers, references: Integers) -> dict[str, float]:
        references = np.asarray(references)
        hits = np.asarray(predictions)[:, 0] == references
        per_class = [hits[references == label].mean() for label in np.unique(references)]
        return {"mean_class_accuracy": 100.0 * float(np.mean(per_class))}


def rank_classes(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Reduce logits to the highest-ranked classes before they are gathered and stored.

    For the Trainer's `preprocess_logits_for_metrics`: ImageNet's validation set takes 2 MB instead
    of 200 MB.

    Args:
        logits: (N, classes), or a tuple with them as first entry.
        labels: Not used; part of the Trainer's interface.

    Returns:
        Class indices of shape (N, min(TOP, classes)), best first; -1, which is no class, where any
        logit is not finite, as after divergence.
    """
    if isinstance(logits, tuple):
        logits = logits[0]
    ranked = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices
    return ranked.masked_fill(~logits.isfinite().all(dim=-1, keepdim=True), -1)


@dataclass(frozen=True)
class ImageErrors:
    """The examples that a classifier gets wrong, and its accuracy on each class."""

    wrong: list[int]  # positions of the examples whose best class is not their label, ascending
    class_accuracy: list[float | None]  # (classes,) top-1, in percent; None: without examples


def image_errors(prediction: EvalPrediction, classes: int) -> ImageErrors:
    """Find the examples that a classifier gets wrong, for paired tests of two classifiers.

    Args:
        prediction: Ranked classes as `rank_classes` returns them, and the labels (N,).
        classes: Number of classes.

    Returns:
        The errors, in the order of the examples.
    """
    labels = np.asarray(prediction.label_ids)
    hits = np.asarray(prediction.predictions)[:, 0] == labels
    by_class = [hits[labels == label] for label in range(classes)]
    return ImageErrors(
        wrong=np.flatnonzero(~hits).tolist(),
        class_accuracy=[100.0 * float(own.mean()) if len(own) else None for own in by_class],
    )


def compute_metrics(prediction: EvalPrediction) -> dict[str, Any]:
    """Compute the three metrics from ranked classes, for the Trainer.

    Args:
        prediction: Ranked classes as `rank_classes` returns them, and the labels (N,).

    Returns:
        `top1_error`, `top5_error` and `mean_class_accuracy`, in percent.
    """
    ranked = {
        "predictions": np.asarray(prediction.predictions),
        "references": np.asarray(prediction.label_ids),
    }
    return {
        **TopKError(keep_in_memory=True).compute(**ranked, k=1),
        **TopKError(keep_in_memory=True).compute(**ranked, k=5),
        **MeanClassAccuracy(keep_in_memory=True).compute(**ranked),
    }
