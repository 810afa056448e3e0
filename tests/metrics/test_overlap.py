import numpy as np
import pytest
import sklearn.metrics
import torch
from scipy.ndimage import distance_transform_edt

from project.metrics.segmentation import boundary_f1, class_counts, overlap_scores

IGNORE = 255
COUNTS = ("tp", "fp", "fn")


def masks(n=5, n_classes=4, shape=(17, 13), ignored=0.2, seed=0):
    """Prediction and target that agree in most pixels; some targets are ignored."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, n_classes, (n, *shape))
    predicted = np.where(rng.random(target.shape) < 0.7, target, rng.integers(0, n_classes, target.shape))
    target = np.where(rng.random(target.shape) < ignored, IGNORE, target)
    return torch.from_numpy(predicted), torch.from_numpy(target)


def blobs(n=4, n_classes=3, shape=(24, 20), ignored=0.0, seed=0):
    """Class maps with connected areas: coarse random maps, enlarged, and the same moved by one pixel."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, n_classes, (n, -(-shape[0] // 4) + 1, -(-shape[1] // 4) + 1))
    target = coarse.repeat(4, 1).repeat(4, 2)[:, : shape[0] + 1, : shape[1] + 1]
    predicted, target = target[:, 1:, 1:], target[:, :-1, :-1]
    target = np.where(rng.random(target.shape) < ignored, IGNORE, target)
    return torch.from_numpy(predicted.copy()), torch.from_numpy(target.copy())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64])
def test_counts_are_those_of_scikit_learn(dtype):
    predicted, target = masks()
    counts = class_counts(predicted.to(dtype), target.to(dtype), 4, IGNORE)
    for b in range(5):
        keep = target[b] != IGNORE
        p, t = predicted[b][keep].numpy(), target[b][keep].numpy()
        each = sklearn.metrics.multilabel_confusion_matrix(t, p, labels=range(4))
        assert counts["tp"][b].tolist() == each[:, 1, 1].tolist()
        assert counts["fp"][b].tolist() == each[:, 0, 1].tolist()
        assert counts["fn"][b].tolist() == each[:, 1, 0].tolist()
    assert {counts[name].dtype for name in COUNTS} == {torch.float64}


def test_a_class_in_neither_mask_is_undefined_and_one_predicted_in_vain_scores_zero():
    target = torch.zeros(2, 4, 4, dtype=torch.long)
    predicted = target.clone()
    predicted[1, 0, 0] = 1
    scores = overlap_scores(class_counts(predicted, target, 3))
    assert scores["dice"][:, 1:].isnan().tolist() == [[True, True], [False, True]]
    assert scores["iou"][1, 1] == scores["dice"][1, 1] == 0
    assert scores["iou"][0, 0] == scores["dice"][0, 0] == 1
    missed = overlap_scores(class_counts(target, predicted, 3))
    assert missed["iou"][1, 1] == missed["dice"][1, 1] == 0


@pytest.mark.parametrize("ignore_index", [IGNORE, -100, 1])
def test_an_image_of_ignored_pixels_has_no_scores(ignore_index):
    target = torch.full((1, 5, 5), ignore_index)
    predicted = torch.randint(0, 2, (1, 5, 5), generator=torch.Generator().manual_seed(0))
    counts = class_counts(predicted, target, 2, ignore_index)
    assert all((counts[name] == 0).all() for name in COUNTS)
    assert overlap_scores(counts)["dice"].isnan().all()
    assert boundary_f1(predicted, target, 2, ignore_index).isnan().all()


@pytest.mark.parametrize("wild", [1000, 1])  # may be no class at all
def test_what_is_predicted_at_ignored_pixels_has_no_influence(wild):
    predicted, target = blobs(2, ignored=0.05)
    other = torch.where(target == IGNORE, wild, predicted)
    first, second = class_counts(predicted, target, 3, IGNORE), class_counts(other, target, 3, IGNORE)
    assert all(torch.equal(first[name], second[name]) for name in COUNTS)
    assert torch.equal(*(boundary_f1(x, target, 3, IGNORE, 2) for x in (predicted, other)))


@pytest.mark.parametrize(("n_classes", "tolerance"), [(2, 0), (4, 1.5), (9, 2), (70, 5.3), (300, 40), (2, 40)])
def test_boundary_scores_are_those_of_distances(n_classes, tolerance):
    """Many classes, and tolerances beyond the image."""
    predicted, target = blobs(2, n_classes, shape=(30, 26), ignored=0.02, seed=3)
    predicted, target = (x.masked_fill(x == IGNORE, 0) if n_classes > IGNORE else x for x in (predicted, target))
    ignore = -1 if n_classes > IGNORE else IGNORE
    found = boundary_f1(predicted, target, n_classes, ignore, tolerance).numpy()
    for b in range(2):
        edges = []
        for x in (predicted[b].numpy(), target[b].numpy()):
            beside = np.zeros(x.shape, bool)
            ignored = np.pad(target[b].numpy() == ignore, 1)
            usable = ~(
                ignored[1:-1, 1:-1] | ignored[2:, 1:-1] | ignored[:-2, 1:-1] | ignored[1:-1, 2:] | ignored[1:-1, :-2]
            )
            padded = np.pad(x, 1, mode="edge")
            for other in (padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2]):
                beside |= other != x
            edges.append(np.where(beside & usable, x, -1))
        for k in range(n_classes):
            p, t = edges[0] == k, edges[1] == k
            if not p.any() or not t.any():
                np.testing.assert_equal(found[b, k], 0 if p.any() or t.any() else np.nan)
                continue
            precision = (distance_transform_edt(~t)[p] <= tolerance).mean()
            recall = (distance_transform_edt(~p)[t] <= tolerance).mean()
            expected = 2 * precision * recall / (precision + recall) if precision + recall else 0
            assert found[b, k] == pytest.approx(expected, rel=1e-14)
