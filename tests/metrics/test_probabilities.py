import math

import numpy as np
import pytest
import sklearn.metrics
import torch

from project.metrics import classification
from project.metrics.classification import reliability

# torchmetrics divides counts in float32.
NEARLY = 1e-6
PREDICTED = ("precision", "recall", "f1")


def single_label_scores(probabilities, label, names=None, positive=None):
    """With numbers as names."""
    names = names or [str(k) for k in range(probabilities.shape[1])]
    return classification.single_label_scores(probabilities, label, names, positive)


def multi_label_scores(probabilities, labels):
    return classification.multi_label_scores(probabilities, labels, [str(k) for k in range(probabilities.shape[1])])


def single(n=200, k=4, seed=0, digits=None):
    """Softmax of scores that know something of the label; with `digits`, rounded so that there are ties."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, k, (n,), generator=generator)
    logits = torch.randn(n, k, generator=generator, dtype=torch.float64) + 1.2 * torch.eye(k)[label]
    probabilities = logits.softmax(1)
    return (probabilities if digits is None else probabilities.round(decimals=digits)), label


def multi(n=200, k=4, seed=0, digits=None):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, k, generator=generator) < torch.linspace(0.1, 0.7, k)).long()
    probabilities = (torch.randn(n, k, generator=generator, dtype=torch.float64) + 2 * labels - 1).sigmoid()
    return (probabilities if digits is None else probabilities.round(decimals=digits)), labels


def calibration_error_by_hand(confidence, right, n_bins=15):
    """Guo et al. (2017), eq. 3, decision by decision."""
    error = 0.0
    for m in range(1, n_bins + 1):
        low, high = (m - 1) / n_bins, m / n_bins
        held = [i for i, c in enumerate(confidence) if low < c <= high or (m == 1 and c == 0)]
        if held:
            error += abs(sum(right[i] for i in held) - sum(confidence[i] for i in held)) / len(confidence)
    return error


def mean_over(score, true, probabilities, classes):
    return np.mean([score(true[:, k], probabilities[:, k]) for k in classes])


@pytest.mark.parametrize(("k", "digits"), [(2, 1), (3, None), (7, 1)])
def test_single_label_scores_are_those_of_scikit_learn(k, digits):
    probabilities, label = single(k=k, digits=digits)
    found, undefined = single_label_scores(probabilities, label)
    p, y = probabilities.numpy(), label.numpy()
    best, one_hot = p.argmax(1), np.eye(k)[y]
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(y, best), rel=1e-12)
    assert found["balanced_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(y, best), rel=1e-12)
    for name in ("precision", "recall", "f1"):
        score = getattr(sklearn.metrics, f"{name}_score")
        assert found[name] == pytest.approx(score(y, best, average="macro"), rel=1e-12)
        each = [found[f"{name}/{c}"] for c in range(k)]
        assert each == pytest.approx(list(score(y, best, average=None)), rel=1e-12)
    for name in ("roc_auc", "average_precision"):
        score, own = getattr(sklearn.metrics, f"{name}_score"), name.replace("roc_auc", "auroc")
        assert found[own] == pytest.approx(mean_over(score, one_hot, p, range(k)), abs=NEARLY)
        each = [found[f"{own}/{c}"] for c in range(k)]
        assert each == pytest.approx([score(one_hot[:, c], p[:, c]) for c in range(k)], abs=NEARLY)
    nll = -np.log(np.maximum(p[np.arange(len(y)), y], 2.0**-126)).mean()
    assert found["nll"] == pytest.approx(nll, rel=1e-12)
    assert found["ece"] == pytest.approx(calibration_error_by_hand(p.max(1), best == y), rel=1e-9)
    assert undefined == {}


@pytest.mark.parametrize(("positive", "number"), [("healthy", 0), ("sick", 1)])
def test_scores_of_two_classes_are_those_of_the_positive_one(positive, number):
    probabilities, label = single(n=300, k=2)
    label[torch.arange(300) % 3 > 0] = 0  # the second class is rare, and often predicted
    found, _ = single_label_scores(probabilities, label, ["healthy", "sick"], positive)
    p, y = probabilities[:, number].numpy(), (label == number).numpy()
    expected = {
        "precision": sklearn.metrics.precision_score(y, p > 0.5),
        "recall": sklearn.metrics.recall_score(y, p > 0.5),
        "f1": sklearn.metrics.f1_score(y, p > 0.5),
        "average_precision": sklearn.metrics.average_precision_score(y, p),
        "auroc": sklearn.metrics.roc_auc_score(y, p),
        "f1_macro": sklearn.metrics.f1_score(y, p > 0.5, average="macro"),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=NEARLY), name
    assert abs(found["f1"] - found["f1_macro"]) > 0.1
    assert found["f1"] == found[f"f1/{positive}"]
    assert found["auroc/healthy"] == pytest.approx(found["auroc/sick"], abs=NEARLY)


def test_absent_classes_are_left_out_and_counted():
    probabilities, label = single(n=60, k=6, digits=2)
    probabilities[:, 3] = probabilities[:, 5] = 0  # neither in the labels nor predicted
    label[(label == 3) | (label == 4) | (label == 5)] = 1
    probabilities[:20, 4] = 1  # predicted, but absent
    found, undefined = single_label_scores(probabilities, label)
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
    found, _ = single_label_scores(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([1]))
    assert found["nll"] == pytest.approx(126 * math.log(2))


@pytest.mark.parametrize("digits", [None, 1])
def test_multi_label_scores_are_those_of_scikit_learn(digits):
    probabilities, labels = multi(digits=digits)
    found, undefined = multi_label_scores(probabilities, labels)
    p, y = probabilities.numpy(), labels.numpy()
    given_ = (p > 0.5).astype(int)
    assert found["accuracy"] == pytest.approx(1 - sklearn.metrics.hamming_loss(y, given_), rel=1e-12)
    assert found["exact_match"] == pytest.approx(sklearn.metrics.accuracy_score(y, given_), rel=1e-12)
    for name in PREDICTED:
        score = getattr(sklearn.metrics, f"{name}_score")
        assert found[name] == pytest.approx(score(y, given_, average="macro"), rel=1e-12)
        assert found[f"{name}/2"] == pytest.approx(score(y[:, 2], given_[:, 2]), rel=1e-12)
    assert found["average_precision/1"] == pytest.approx(
        sklearn.metrics.average_precision_score(y[:, 1], p[:, 1]), abs=NEARLY
    )
    assert found["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(y, p), abs=NEARLY)
    expected = sklearn.metrics.average_precision_score(y, p)
    assert found["average_precision"] == pytest.approx(expected, abs=NEARLY)
    confidence = np.where(p > 0.5, p, 1 - p).ravel()
    assert found["ece"] == pytest.approx(calibration_error_by_hand(confidence, (given_ == y).ravel()), rel=1e-9)
    assert undefined == {}


def test_reliability_by_hand():
    best = torch.tensor([0.5, 0.6, 0.8, 0.75, 1.0, 1.0], dtype=torch.float64)
    label = torch.tensor([0, 1, 0, 0, 0, 1])
    confidence, accuracy, count = reliability(torch.stack([best, 1 - best], 1), label, 4)
    # (0.25, 0.5], (0.5, 0.75], (0.75, 1]; a bin takes its upper edge.
    assert count.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(confidence, [np.nan, 0.5, 0.675, 2.8 / 3])
    np.testing.assert_allclose(accuracy, [np.nan, 1, 0.5, 2 / 3])
    assert reliability(torch.zeros(0, 2, dtype=torch.float64), label[:0], 3)[2].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("make", "score"), [(single, single_label_scores), (multi, multi_label_scores)])
def test_a_network_that_has_diverged_has_no_scores(make, score):
    probabilities, label = make(n=10, k=3)
    names = {name for name in score(probabilities, label)[0] if "/" not in name}
    probabilities[3, 1] = torch.nan
    assert score(probabilities, label) == ({}, dict.fromkeys(names, 3))
    nothing = torch.zeros(0, 3, dtype=torch.float64)
    assert score(nothing, label[:0]) == ({}, dict.fromkeys(names, 3))
