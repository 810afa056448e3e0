"""Metrics of class probabilities, against scikit-learn."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch

from project.metrics.classification import class_scores, reliability

# torchmetrics divides counts in float32.
NEARLY = 1e-6


def scores(probabilities, labels, names=None, positive=None):
    """With numbers as names."""
    return class_scores(probabilities, labels, names or [str(k) for k in range(probabilities.shape[1])], positive)


def single(n=200, k=4, digits=None):
    """Softmax of scores that know something of the label; with `digits`, rounded so that there are ties."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, k, (n,), generator=generator)
    logits = torch.randn(n, k, generator=generator, dtype=torch.float64) + 1.2 * torch.eye(k)[label]
    probabilities = logits.softmax(1)
    return (probabilities if digits is None else probabilities.round(decimals=digits)), label


def multi(n=200, k=4, digits=None):
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(n, k, generator=generator) < torch.linspace(0.1, 0.7, k)).long()
    probabilities = (torch.randn(n, k, generator=generator, dtype=torch.float64) + 2 * labels - 1).sigmoid()
    return (probabilities if digits is None else probabilities.round(decimals=digits)), labels


def calibration_error_by_hand(confidence, right, n_bins=15):
    """Guo et al. (2017), eq. 3, decision by decision."""
    error = 0.0
    for m in range(1, n_bins + 1):
        low, high = (m - 1) / n_bins, m / n_bins
        held = [i for i, c in enumerate(confidence) if low < c <= high or (m == 1 and c == 0)]
        error += abs(sum(right[i] - confidence[i] for i in held)) / len(confidence)
    return error


def mean_over(score, true, probabilities, classes):
    return np.mean([score(true[:, k], probabilities[:, k]) for k in classes])


@pytest.mark.parametrize(
    ("make", "k", "digits"), [(single, 2, 1), (single, 3, None), (single, 7, 1), (multi, 4, None), (multi, 4, 1)]
)
def test_scores_are_those_of_scikit_learn(make, k, digits):
    probabilities, labels = make(k=k, digits=digits)
    found, undefined = scores(probabilities, labels)
    p, y = probabilities.numpy(), labels.numpy()
    best = p.argmax(1) if make is single else (p > 0.5).astype(int)
    truth = np.eye(k)[y] if make is single else y
    if make is single:
        confidence, right = p.max(1), best == y
        nll = -np.log(np.maximum(p[np.arange(len(y)), y], 2.0**-126)).mean()
        assert found["nll"] == pytest.approx(nll, rel=1e-12)
        assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(y, best), rel=1e-12)
        assert found["balanced_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(y, best), rel=1e-12)
    else:
        confidence, right = np.where(p > 0.5, p, 1 - p).ravel(), (best == y).ravel()
        assert found["accuracy"] == pytest.approx(1 - sklearn.metrics.hamming_loss(y, best), rel=1e-12)
        assert found["exact_match"] == pytest.approx(sklearn.metrics.accuracy_score(y, best), rel=1e-12)
    assert found["ece"] == pytest.approx(calibration_error_by_hand(confidence, right), rel=1e-9)
    for name in ("precision", "recall", "f1"):
        score = getattr(sklearn.metrics, f"{name}_score")
        assert found[name] == pytest.approx(score(y, best, average="macro"), rel=1e-12)
        of_classes = [found[f"{name}/{c}"] for c in range(k)]
        assert of_classes == pytest.approx(list(score(y, best, average=None)), rel=1e-12)
    for name in ("auroc", "average_precision"):
        score = getattr(sklearn.metrics, f"{name.replace('auroc', 'roc_auc')}_score")
        assert found[name] == pytest.approx(mean_over(score, truth, p, range(k)), abs=NEARLY)
        of_classes = [found[f"{name}/{c}"] for c in range(k)]
        assert of_classes == pytest.approx([score(truth[:, c], p[:, c]) for c in range(k)], abs=NEARLY)
    assert undefined == {}


def test_scores_of_two_classes_are_those_of_the_positive_one():
    probabilities, label = single(n=300, k=2)
    label[torch.arange(300) % 3 > 0] = 0  # the second class is rare, and often predicted
    names = ["healthy", "sick"]
    for positive in names:
        found, _ = scores(probabilities, label, names, positive)
        of_classes, _ = scores(probabilities, label, names)
        for name in ("precision", "recall", "f1", "average_precision", "auroc"):
            assert found[name] == of_classes[f"{name}/{positive}"]
            assert found[f"{name}_macro"] == of_classes[name]
    assert abs(found["f1"] - found["f1_macro"]) > 0.1


def test_absent_classes_are_left_out_and_counted():
    probabilities, label = single(n=60, k=6, digits=2)
    probabilities[:, 3] = probabilities[:, 5] = 0  # neither in the labels nor predicted
    label[(label == 3) | (label == 4) | (label == 5)] = 1
    probabilities[:20, 4] = 1  # predicted, but absent
    found, undefined = scores(probabilities, label)
    p, y = probabilities.numpy(), label.numpy()
    best = p.argmax(1)
    expected = {"balanced_accuracy": 3, "precision": 2, "recall": 3, "f1": 2, "auroc": 3, "average_precision": 3}
    assert undefined == expected
    assert "recall/4" not in found
    assert found["precision/4"] == 0
    assert found["f1"] == pytest.approx(sklearn.metrics.f1_score(y, best, average="macro"), rel=1e-12)
    recall = sklearn.metrics.recall_score(y, best, average="macro", labels=[0, 1, 2])
    assert found["balanced_accuracy"] == pytest.approx(recall, rel=1e-12)
    expected = mean_over(sklearn.metrics.roc_auc_score, np.eye(6)[y], p, (0, 1, 2))
    assert found["auroc"] == pytest.approx(expected, abs=NEARLY)


def test_a_label_of_probability_zero_costs_a_finite_amount():
    found, _ = scores(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([1]))
    assert found["nll"] == pytest.approx(126 * math.log(2))


def test_reliability_by_hand():
    best = torch.tensor([0.5, 0.6, 0.8, 0.75, 1.0, 1.0], dtype=torch.float64)
    label = torch.tensor([0, 1, 0, 0, 0, 1])
    confidence, accuracy, count = reliability(torch.stack([best, 1 - best], 1), label, 4)
    # (0.25, 0.5], (0.5, 0.75], (0.75, 1]; a bin takes its upper edge.
    assert count.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(confidence, [np.nan, 0.5, 0.675, 2.8 / 3])
    np.testing.assert_allclose(accuracy, [np.nan, 1, 0.5, 2 / 3])
    assert reliability(torch.zeros(0, 2, dtype=torch.float64), label[:0], 3)[2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("make", [single, multi])
def test_a_network_that_has_diverged_has_no_scores(make):
    probabilities, label = make(n=10, k=3)
    names = {name for name in scores(probabilities, label)[0] if "/" not in name}
    probabilities[3, 1] = torch.nan
    assert scores(probabilities, label) == ({}, dict.fromkeys(names, 3))
    nothing = torch.zeros(0, 3, dtype=torch.float64)
    assert scores(nothing, label[:0]) == ({}, dict.fromkeys(names, 3))
