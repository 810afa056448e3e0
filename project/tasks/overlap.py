"""Overlap of predicted and true masks, and agreement of their outlines: one row per image, one column per class.

Counts are whole numbers in float64, so rows of different batches, workers or devices add up without rounding, and the
scores that follow do not depend on how the split was batched.

Policy for empty masks: a class that is predicted where there is none scores 0; a class in neither mask is not defined
for this image (NaN), for whoever averages to count and leave out.
"""

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor


def class_counts(
    predicted: Tensor, target: Tensor, n_classes: int, ignore_index: int | None = None
) -> dict[str, Tensor]:
    """Pixels of each class that are right, too many, and missing.

    Args:
        predicted: (B, H, W) integer, class of each pixel, on any device.
        target: (B, H, W) integer, the same device.
        n_classes: K; classes are 0 to K - 1.
        ignore_index: Pixels with this value in `target` do not count, whatever is predicted there.

    Returns:
        tp, fp, fn: (B, K) float64 on the CPU (not every device has float64).

    Raises:
        ValueError: Shapes differ, or a pixel that counts holds no class.
    """
    valid = _valid(predicted, target, n_classes, ignore_index)
    n = len(target)
    image = torch.arange(n, device=target.device)[:, None, None].expand(target.shape)
    cell = (image * n_classes + target.long()) * n_classes + predicted.long()
    counts = torch.bincount(cell[valid], minlength=n * n_classes**2).cpu()
    confusion = counts.view(n, n_classes, n_classes).double()  # image, true class, predicted class
    tp = confusion.diagonal(dim1=1, dim2=2)
    return {"tp": tp, "fp": confusion.sum(1) - tp, "fn": confusion.sum(2) - tp}


def overlap_scores(counts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Dice coefficient and intersection over union.

    Args:
        counts: tp, fp, fn of `class_counts`, (B, K); summed over images, (K,), they give the pooled scores.

    Returns:
        Of the same shape, float64, NaN for a class in neither mask:

        - dice: 2 tp / (2 tp + fp + fn). Dice (1945), Ecology 26, 297-302: "coincidence index".
        - iou: tp / (tp + fp + fn). Jaccard (1912), New Phytologist 11, 37-50: "coefficient of community".
    """
    tp, wrong = counts["tp"], counts["fp"] + counts["fn"]
    present = tp + wrong > 0
    return {
        "dice": torch.where(present, 2 * tp / (2 * tp + wrong), torch.nan),
        "iou": torch.where(present, tp / (tp + wrong), torch.nan),
    }


def boundary_f1(
    predicted: Tensor, target: Tensor, n_classes: int, ignore_index: int | None = None, tolerance: float = 2
) -> Tensor:
    """How well the outlines of each class agree: the BF score of Csurka et al. (2013), BMVC, section 3.3.

    A boundary pixel of a class has one of its four neighbours, inside the image, in another class. Precision is the
    share of predicted boundary pixels with a true one of the same class within `tolerance`, recall the reverse; the
    score is their harmonic mean.

    Boundary pixels in or beside an ignored pixel (four neighbours) are dropped from both masks: they neither count nor
    serve as the partner of another. So what is predicted at ignored pixels has no influence.

    Args:
        predicted: (B, H, W) integer, class of each pixel, on any device.
        target: (B, H, W) integer.
        n_classes: K; classes are 0 to K - 1.
        ignore_index: The value of ignored pixels in `target`.
        tolerance: Largest Euclidean distance of partners, in pixels. The paper takes 0.75 % of the image's diagonal.

    Returns:
        (B, K) float64 on the CPU. 0 if only one of the masks has a boundary of the class; NaN if neither has one: the
        class is absent, or fills the image.

    Raises:
        ValueError: As `class_counts`.
    """
    valid = _valid(predicted, target, n_classes, ignore_index).cpu().numpy()
    usable = valid & ~_beside_another(valid)
    p, t = (x.cpu().numpy() for x in (predicted, target))
    p_edge, t_edge = (_beside_another(x) & usable for x in (p, t))
    scores = np.empty((len(t), n_classes))
    for b, k in np.ndindex(*scores.shape):
        scores[b, k] = _outline_score(p_edge[b] & (p[b] == k), t_edge[b] & (t[b] == k), tolerance)
    return torch.from_numpy(scores)


def _valid(predicted: Tensor, target: Tensor, n_classes: int, ignore_index: int | None) -> Tensor:
    """Which pixels count, (B, H, W) bool; checks that these hold classes."""
    if predicted.shape != target.shape or target.ndim != 3:
        raise ValueError(f"both masks must be (B, H, W), not {tuple(predicted.shape)} and {tuple(target.shape)}")
    predicted, target = predicted.long(), target.long()  # uint16 knows no comparison
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    for name, mask in (("prediction", predicted), ("mask", target)):
        wrong = mask[valid & ((mask < 0) | (mask >= n_classes))]
        if len(wrong):
            raise ValueError(f"the {name} holds class {wrong[0].item()}, but classes are 0 to {n_classes - 1}")
    return valid


def _beside_another(x: np.ndarray) -> np.ndarray:
    """Pixels of (B, H, W) with one of four neighbours, inside the image, of another value."""
    found = np.zeros(x.shape, dtype=bool)
    rows, columns = x[:, 1:] != x[:, :-1], x[:, :, 1:] != x[:, :, :-1]
    found[:, 1:] |= rows
    found[:, :-1] |= rows
    found[:, :, 1:] |= columns
    found[:, :, :-1] |= columns
    return found


def _outline_score(predicted: np.ndarray, target: np.ndarray, tolerance: float) -> float:
    """Harmonic mean of precision and recall of boundary pixels, (H, W) bool each."""
    if not predicted.any() and not target.any():
        return np.nan
    if not predicted.any() or not target.any():
        return 0.0
    precision = (distance_transform_edt(~target)[predicted] <= tolerance).mean()
    recall = (distance_transform_edt(~predicted)[target] <= tolerance).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall > 0 else 0.0
