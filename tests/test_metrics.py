"""The metrics agree with scikit-learn's, and stay small on the way."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score
from transformers import EvalPrediction

from hf_sam.metrics import compute_metrics, rank_classes


@pytest.mark.parametrize("classes", [2, 4, 20])
def test_agree_with_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(300, classes))
    labels = np.minimum(rng.poisson(classes / 4, size=300), classes - 1)  # of unequal frequency
    ranked = rank_classes(torch.tensor(logits), torch.tensor(labels))
    assert ranked.shape == (300, min(5, classes))
    found = compute_metrics(EvalPrediction(ranked.numpy(), labels))
    best = logits.argmax(axis=1)
    assert found["top1_error"] == pytest.approx(100 * (1 - accuracy_score(labels, best)))
    present = np.isin(np.arange(classes), labels)
    balanced = balanced_accuracy_score(labels, np.where(present[best], best, labels.max() + 1))
    assert found["mean_class_accuracy"] == pytest.approx(100 * balanced)
    if classes > 5:
        top5 = top_k_accuracy_score(labels, logits, k=5, labels=np.arange(classes))
        assert found["top5_error"] == pytest.approx(100 * (1 - top5))
    else:
        assert found["top5_error"] == 0


def test_takes_the_logits_out_of_a_tuple() -> None:
    logits = torch.tensor([[0.1, 0.9, 0.0]])
    assert rank_classes((logits, torch.zeros(3)), torch.zeros(1)).tolist() == [[1, 0, 2]]


def test_a_network_that_has_diverged_predicts_nothing() -> None:
    logits = torch.tensor([[torch.nan] * 3, [0.0, torch.inf, 1.0], [0.0, 2.0, 1.0]])
    ranked = rank_classes(logits, torch.zeros(3))
    assert ranked.tolist() == [[-1, -1, -1], [-1, -1, -1], [1, 2, 0]]
    metrics = compute_metrics(EvalPrediction(ranked.numpy(), np.array([0, 1, 1])))
    assert metrics["top1_error"] == pytest.approx(200 / 3)
    assert metrics["top5_error"] == pytest.approx(200 / 3)
