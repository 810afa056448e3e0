"""Overlap of predicted and true masks, and agreement of their outlines: one row per image, one column per class.

Counts are whole numbers in float64, so rows of different batches, workers or devices add up without rounding, and the
scores that follow do not depend on how the split was batched.

Policy for empty masks: a class that is predicted where there is none scores 0; a class in neither mask is not defined
for this image (NaN), for whoever averages to count and leave out.
"""

import math

import torch
from torch import Tensor

BITS = 62  # classes whose outlines are dilated together, one bit of an int64 each


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
    predicted, target = _classes(predicted, target, n_classes, ignore_index)
    cell = target.int() * n_classes + predicted
    # The row of the ignored pixels is left out.
    confusion = _count(cell, (n_classes + 1) * n_classes).view(-1, n_classes + 1, n_classes)[:, :-1]
    tp = confusion.diagonal(dim1=1, dim2=2)
    return {"tp": tp, "fp": confusion.sum(1) - tp, "fn": confusion.sum(2) - tp}


def overlap_scores(counts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Dice coefficient, intersection over union, precision and recall.

    Args:
        counts: tp, fp, fn of `class_counts`, (B, K); summed over images, (K,), they give the pooled scores.

    Returns:
        Of the same shape, float64, NaN for a class in neither mask:

        - dice: 2 tp / (2 tp + fp + fn). Dice (1945), Ecology 26, 297-302: "coincidence index".
        - iou: tp / (tp + fp + fn). Jaccard (1912), New Phytologist 11, 37-50: "coefficient of community".
        - precision: tp / (tp + fp); also NaN for a class that is not predicted.
        - recall: tp / (tp + fn); also NaN for a class that is not in the mask.
    """
    tp, fp, fn = counts["tp"], counts["fp"], counts["fn"]
    parts = {"dice": (2 * tp, 2 * tp + fp + fn), "iou": (tp, tp + fp + fn), "precision": (tp, tp + fp)}
    parts["recall"] = tp, tp + fn
    return {name: torch.where(whole > 0, part / whole, torch.nan) for name, (part, whole) in parts.items()}


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
    predicted, target = _classes(predicted, target, n_classes, ignore_index)
    ignored = target == n_classes
    usable = ~(ignored | _beside_another(ignored))
    p_edge, t_edge = (_beside_another(x) & usable for x in (predicted, target))
    p_hit, t_hit = torch.zeros_like(p_edge), torch.zeros_like(t_edge)
    for first in range(0, n_classes, BITS):
        n = min(BITS, n_classes - first)
        p_bits, t_bits = _bits(predicted, p_edge, first, n), _bits(target, t_edge, first, n)
        # A pixel has a partner within the tolerance exactly if it lies in the dilation of all possible partners.
        p_hit |= (p_bits & _dilated(t_bits, tolerance)) != 0
        t_hit |= (t_bits & _dilated(p_bits, tolerance)) != 0
    (precision, n_predicted), (recall, n_true) = (
        _hit_rate(x, edge, hit, n_classes) for x, edge, hit in ((predicted, p_edge, p_hit), (target, t_edge, t_hit))
    )
    both = precision + recall
    score = torch.where(both > 0, 2 * precision * recall / both, 0.0)
    return torch.where(n_predicted + n_true > 0, score, torch.nan)


def _classes(predicted: Tensor, target: Tensor, n_classes: int, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Both masks as small integers; an ignored pixel has class K in the target and some class in the prediction."""
    if predicted.shape != target.shape or target.ndim != 3:
        raise ValueError(f"both masks must be (B, H, W), not {tuple(predicted.shape)} and {tuple(target.shape)}")
    # uint16 knows no comparison.
    predicted, target = (x.int() if x.dtype == torch.uint16 else x for x in (predicted, target))
    ignored = None if ignore_index is None else target == ignore_index
    small = torch.uint8 if n_classes < 256 else torch.int32
    found = []
    for name, mask in (("prediction", predicted), ("mask", target)):
        if ignored is not None:
            mask = mask.masked_fill(ignored, 0)
        low, high = torch.stack(mask.aminmax()).tolist()
        if low < 0 or high >= n_classes:
            wrong = mask[(mask < 0) | (mask >= n_classes)][0].item()
            raise ValueError(f"the {name} holds class {wrong}, but classes are 0 to {n_classes - 1}")
        found.append(mask.to(small))
    if ignored is not None:
        found[1] = found[1].masked_fill(ignored, n_classes)
    return found[0], found[1]


def _count(cells: Tensor, n: int) -> Tensor:
    """How often each of n numbers stands in each image, (B, n) float64 on the CPU, from (B, H, W) int32."""
    image = torch.arange(len(cells), dtype=torch.int32, device=cells.device)[:, None, None]
    return torch.bincount((image * n + cells).flatten(), minlength=len(cells) * n).cpu().view(-1, n).double()


def _beside_another(x: Tensor) -> Tensor:
    """Pixels of (B, H, W) with one of four neighbours, inside the image, of another value."""
    found = torch.zeros_like(x, dtype=torch.bool)
    rows, columns = x[:, 1:] != x[:, :-1], x[:, :, 1:] != x[:, :, :-1]
    found[:, 1:] |= rows
    found[:, :-1] |= rows
    found[:, :, 1:] |= columns
    found[:, :, :-1] |= columns
    return found


def _bits(x: Tensor, edge: Tensor, first: int, n: int) -> Tensor:
    """Boundary pixels of n classes, the k-th bit for class `first` + k."""
    if x.dtype == torch.uint8 and first + n <= 8:  # what is usual
        return torch.where(edge, torch.ones_like(x) << x, 0)
    kind = torch.uint8 if n <= 8 else torch.int64
    chosen = edge & (x >= first) & (x < first + n)
    place = (x.int() - first).clamp(0, n - 1).to(kind)
    return torch.where(chosen, torch.ones_like(place) << place, 0)


def _dilated(bits: Tensor, tolerance: float) -> Tensor:
    """What is set in any pixel within a Euclidean distance, (B, H, W): row by row of a disc."""
    reach = max(int(tolerance), 0)
    found, wide, width = bits.clone(), bits.clone(), 0
    for dy in range(reach, -1, -1):  # the rows of the disc become wider towards its middle
        while math.sqrt(dy**2 + (width + 1) ** 2) <= tolerance:
            width += 1
            wide[:, :, width:] |= bits[:, :, :-width]
            wide[:, :, :-width] |= bits[:, :, width:]
        if dy == 0:
            found |= wide
        else:
            found[:, dy:] |= wide[:, :-dy]
            found[:, :-dy] |= wide[:, dy:]
    return found


def _hit_rate(x: Tensor, edge: Tensor, hit: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Share of the boundary pixels of each class that have a partner, 0 without any; and their number, (B, K)."""
    cell = torch.where(edge, 2 * x.int() + hit, 2 * n_classes)
    missed, hits = _count(cell, 2 * n_classes + 1)[:, :-1].view(-1, n_classes, 2).unbind(2)
    return torch.where(hits > 0, hits / (hits + missed), 0.0), missed + hits
