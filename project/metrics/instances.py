"""From masks to objects, and how well predicted objects agree with true ones.

Objects are numbered from 1 in (H, W) arrays; 0 is background.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy import ndimage
from skimage.morphology import local_maxima
from skimage.segmentation import watershed
from torch import Tensor
from torch.nn import functional

OBJECTS = ("n_true", "n_predicted", "n_matched", "iou_sum")


@dataclass(frozen=True)
class Matches:
    """Objects of one image that agree.

    Attributes:
        n_true, n_predicted: Objects in the image.
        n_matched: Pairs of a true and a predicted object.
        iou_sum: Sum of the pairs' intersections over union; divided by n_matched it is the segmentation quality of
            Kirillov et al. (2019), "Panoptic Segmentation", eq. 2.
    """

    n_true: int
    n_predicted: int
    n_matched: int
    iou_sum: float


def components(foreground: np.ndarray, min_size: int) -> np.ndarray:
    """Connected parts of the foreground.

    Pixels are connected through their four sides: two objects that meet at a corner are more often two than one, and
    the watersheds below flood through sides too.

    Args:
        foreground: (H, W) bool.
        min_size: Smaller parts are removed; pixels.

    Returns:
        (H, W) int32, numbered consecutively from 1.
    """
    return _numbered(ndimage.label(foreground)[0], min_size)


def split_touching(foreground: np.ndarray, min_size: int, spacing: float) -> np.ndarray:
    """Split touching roundish objects at their necks.

    The distance to the background is smoothed (Gaussian, sigma of spacing / 4, against the raggedness of outlines).
    Its local maxima seed a watershed (Meyer 1994, Signal Process. 38, 113-125); maxima within `spacing` of each other,
    directly or through others between them, are one seed. So a smooth rod, with many maxima along its ridge, stays
    whole; a ragged one that is more than twice as long as wide may be cut, the more so the smaller `spacing` is.

    Args:
        foreground: (H, W) bool.
        min_size: Smaller parts of the foreground are removed, and no smaller piece is split off; pixels.
        spacing: Centres nearer than this belong to one object; pixels. A third to half of an object's diameter
            is a good start.

    Returns:
        (H, W) int32, numbered consecutively from 1.
    """
    foreground = foreground.astype(bool)
    if foreground.all():  # nothing to measure a distance to
        return components(foreground, min_size)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(foreground), spacing / 4)
    peaks = local_maxima(distance) & foreground
    near = ndimage.distance_transform_edt(~peaks) < spacing / 2 if peaks.any() else peaks
    return _grow(ndimage.label((near | peaks) & foreground)[0], -distance, foreground, min_size)


def split_at_boundary(interior: np.ndarray, foreground: np.ndarray, min_size: int) -> np.ndarray:
    """Objects of a network that predicts interiors and boundaries as two classes.

    Each part of the interior seeds an object, which takes the foreground that is nearest to it (watershed). A part of
    the foreground without any interior is an object of its own: small objects are all boundary.

    Args:
        interior: (H, W) bool.
        foreground: (H, W) bool, interior and boundary together; interior outside of it does not count.
        min_size: Smaller parts of the foreground are removed, and a seed that would give a smaller object joins its
            neighbours; pixels.

    Returns:
        (H, W) int32, numbered consecutively from 1.
    """
    foreground = foreground.astype(bool)
    seeds = interior.astype(bool) & foreground
    return _grow(ndimage.label(seeds)[0], ndimage.distance_transform_edt(~seeds), foreground, min_size)


def boundary_class(instances: Tensor, width: int = 1) -> Tensor:
    """Pixels of an object near another object or background: what a network learns to keep objects apart.

    Args:
        instances: (B, H, W) integer from 0 to 2^31 - 1, on any device.
        width: Of the boundary in pixels: it is near if it lies in the square window of 2 * width + 1. What is outside
            the image is neither object nor background.

    Returns:
        (B, H, W) bool.
    """
    numbers = instances.int()  # uint16 knows neither padding nor comparison
    outside = -1
    padded = functional.pad(numbers, (width,) * 4, value=outside)
    height, length = numbers.shape[1:]
    near = torch.zeros_like(numbers, dtype=torch.bool)
    for dy in range(2 * width + 1):
        for dx in range(2 * width + 1):
            other = padded[:, dy : dy + height, dx : dx + length]
            near |= (other != numbers) & (other != outside)
    return near & (numbers > 0)


def match(predicted: np.ndarray, target: np.ndarray, threshold: float = 0.5) -> Matches:
    """Pair predicted with true objects whose intersection over union is above the threshold.

    From 0.5 on no object can be in two pairs, so nothing has to be assigned: the common pixels of such a pair are more
    than half of either object, and two disjoint objects cannot both hold more than half of a third. Kirillov et al.
    (2019), "Panoptic Segmentation", section 4.1.

    Args:
        predicted: (H, W) integer, object number of each pixel; any numbers, 0 and below are background.
        target: (H, W) integer.
        threshold: From 0.5 to 1.

    Raises:
        ValueError: Shapes differ, or the threshold allows an object in two pairs.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"objects of one image must have one shape, not {predicted.shape} and {target.shape}")
    if not 0.5 <= threshold <= 1:
        raise ValueError(f"the threshold of matching is {threshold}, but must be 0.5 to 1: below, pairs are not unique")
    true, t = np.unique(target[target > 0], return_counts=True)
    found, p = np.unique(predicted[predicted > 0], return_counts=True)
    both = (target > 0) & (predicted > 0)
    # Only pairs that share pixels are ever listed: the table of all pairs would be large and almost empty.
    row, column = np.searchsorted(true, target[both]), np.searchsorted(found, predicted[both])
    pairs, common = np.unique(row * len(found) + column, return_counts=True)
    row, column = np.divmod(pairs, len(found))
    iou = common / (t[row] + p[column] - common)
    matched = iou[iou > threshold]
    # fsum: the same number in whatever order objects are numbered.
    return Matches(len(true), len(found), len(matched), math.fsum(matched))


def match_by_class(
    predicted: np.ndarray, target: np.ndarray, counts: Sequence[int], mask: np.ndarray, classes: Sequence[int]
) -> list[Matches]:
    """Pair objects of the same class.

    Args:
        predicted: (H, W) object numbers from 1, those of the first class first.
        target: (H, W) true object numbers. The class of an object is the commonest of `classes` among its pixels; an
            object without any of them is in no class.
        counts: Number of predicted objects of each class.
        mask: (H, W) true class of each pixel.
        classes: Class numbers in `mask`; a single one has all true objects.

    Returns:
        The matches of each class.
    """
    if len(classes) == 1:
        return [match(predicted, target)]
    votes = np.stack([np.bincount(target[mask == k], minlength=target.max() + 1) for k in classes], 1)
    votes[0] = 0  # no object
    true_class = np.where(votes.any(1), votes.argmax(1), -1)[target]
    ends = np.cumsum([0, *counts])
    return [
        match(np.where((predicted > low) & (predicted <= high), predicted, 0), np.where(true_class == k, target, 0))
        for k, (low, high) in enumerate(pairwise(ends))
    ]


def count_scores(
    n_true: Tensor, n_predicted: Tensor, n_matched: Tensor, iou_sum: Tensor
) -> tuple[dict[str, float], dict[str, int]]:
    """How well objects are counted and found over a split.

    Args:
        n_true: (N,) float64, objects in each image.
        n_predicted: (N,).
        n_matched: (N,) pairs, as in `Matches`.
        iou_sum: (N,) sum of their intersections over union.

    Returns:
        Metrics, without those that are not defined, and score -> number of images for which it is not defined:

        - count_error: mean over images of |predicted - true|.
        - count_bias: mean of predicted - true.
        - count_pearson: correlation of the counts; not defined for fewer than two images or if either is constant.
        - object_f1: mean over images of 2 matched / (true + predicted); not defined for an image without any object.
        - object_f1_pooled: the same ratio of the sums over all images.
        - matched_iou: mean intersection over union of all matched pairs.
        - panoptic_quality: object_f1_pooled * matched_iou. Kirillov et al. (2019), "Panoptic Segmentation", eq. 2.
    """
    n, error, both = len(n_true), n_predicted - n_true, n_true + n_predicted
    present = both > 0
    metrics = {
        "count_error": error.abs().mean().item(),
        "count_bias": error.mean().item(),
        "count_pearson": _correlation(n_true, n_predicted),
        "object_f1": (2 * n_matched[present] / both[present]).mean().item(),
        "object_f1_pooled": (2 * n_matched.sum() / both.sum()).item(),
        "matched_iou": (iou_sum.sum() / n_matched.sum()).item(),
        "panoptic_quality": (2 * iou_sum.sum() / both.sum()).item(),
    }
    undefined = {name: n for name, value in metrics.items() if math.isnan(value)}
    if not present.all():
        undefined["object_f1"] = int((~present).sum())
    return {name: value for name, value in metrics.items() if not math.isnan(value)}, undefined


def _grow(seeds: np.ndarray, landscape: np.ndarray, foreground: np.ndarray, min_size: int) -> np.ndarray:
    """Watershed of numbered seeds; parts of the foreground that no seed reaches become objects of their own."""
    parts = components(foreground, min_size)
    regions = watershed(landscape, seeds, mask=parts > 0)
    sizes = np.bincount(regions.ravel(), minlength=seeds.max() + 1)
    small = (sizes > 0) & (sizes < min_size)
    if small.any():  # without their seeds, too small pieces go to their neighbours
        regions = watershed(landscape, np.where(small[seeds], 0, seeds), mask=parts > 0)
    return _numbered(np.where((parts > 0) & (regions == 0), parts + regions.max(), regions), min_size)


def _numbered(regions: np.ndarray, min_size: int) -> np.ndarray:
    """Objects of at least `min_size` pixels, numbered consecutively."""
    sizes = np.bincount(regions.ravel())
    kept = sizes >= max(min_size, 1)
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[regions]


def _correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, NaN if either is constant."""
    if (a == a[:1]).all() or (b == b[:1]).all():  # so is a single number, or none
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return ((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1).item()
