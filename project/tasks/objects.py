"""From class maps to objects: connected components, and watersheds that split touching objects; and what is learned.

Objects are numbered consecutively from 1 in (H, W) int32 arrays; 0 is background. Parts of the foreground below
`min_size` pixels are removed, and a seed that would give a smaller object joins its neighbors.
"""

import numpy as np
import torch
from scipy import ndimage
from skimage.morphology import local_maxima
from skimage.segmentation import watershed
from torch import Tensor
from torch.nn import functional

MAX_DEPTH = 6  # pixels: what separates neighbors can be seen nearby, and is learned sooner than centers
STEP, SADDLE = 0.05, 0.1  # of the relative depth, for its peaks


def components(foreground: np.ndarray, min_size: int) -> np.ndarray:
    """Parts of the foreground (H, W) that are connected through sides.

    Two objects that meet at a corner are more often two than one, and the watersheds below flood through sides too.
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
        min_size: In pixels.
        spacing: Centers nearer than this belong to one object; pixels. A third to half of an object's diameter
            is a good start.
    """
    if foreground.all():  # nothing to measure a distance to
        return components(foreground, min_size)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(foreground), spacing / 4)
    peaks = local_maxima(distance) & foreground
    near = ndimage.distance_transform_edt(~peaks) < spacing / 2 if peaks.any() else peaks
    return _grow(ndimage.label((near | peaks) & foreground)[0], -distance, foreground, min_size)


def split_at_depth(foreground: np.ndarray, depth: np.ndarray, min_size: int) -> np.ndarray:
    """Objects of a network that predicts how deep each pixel is in its object, see `relative_depth`.

    The depth (H, W), from 0 to 1, is smoothed by a Gaussian of one pixel. Each of its peaks, see `depth_peaks`, seeds
    an object, which grows downhill (watershed). A part of the foreground without a seed is an object of its own.
    """
    smooth = ndimage.gaussian_filter(depth.astype(np.float32), 1.0)
    return _grow(depth_peaks(smooth, foreground), -smooth, foreground, min_size)


def depth_peaks(depth: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Peaks, numbered from 1 with gaps, that are separated by a saddle lower than each of them by at least `SADDLE`.

    The parts of the foreground above a depth are followed upwards in steps of `STEP`: one that falls into several which
    reach higher by `SADDLE` is replaced by these. A peak of any height counts, so that a network which is not sure of
    the depth still separates objects. As the h-maxima of mathematical morphology, rounded to steps.
    """
    seeds, last = ndimage.label((depth > STEP) & foreground)
    for level in np.arange(2 * STEP, 1 - SADDLE, STEP):
        parts, n = ndimage.label((depth > level) & foreground)
        inside = parts > 0
        heights, parents = np.zeros(n + 1, depth.dtype), np.zeros(n + 1, seeds.dtype)
        np.maximum.at(heights, parts[inside], depth[inside])
        parents[parts[inside]] = seeds[inside]
        parents[heights < level + SADDLE] = 0
        is_split = np.bincount(parents, minlength=last + 1) > 1
        is_split[0] = False
        if is_split.any():
            numbers = np.where(is_split[parents], last + np.arange(n + 1), 0).astype(seeds.dtype)
            seeds = np.where(is_split[seeds], numbers[parts], seeds)
            last += n
    return seeds


def relative_depth(instances: Tensor) -> Tensor:
    """Distance of each pixel to the boundary of its object, at most `MAX_DEPTH`, divided by the largest of the object.

    It is 1 in the middle of an object of any size, and small between objects that touch. What is outside the image is
    neither object nor background, so that an object which is cut by a crop looks like one cut by the image.

    No value is asked for, so that a GPU is not waited for: the squared distance along rows, then its minimum over
    shifts along columns.

    Args:
        instances: (B, H, W) integer from 0 to 65535, on any device.

    Returns:
        (B, H, W) float32, 0 in the background.
    """
    numbers = instances.int()
    edge = boundary(numbers)
    columns = torch.arange(numbers.shape[2], device=numbers.device)
    far = numbers.shape[2] + MAX_DEPTH
    left = torch.where(edge, columns, -far).cummax(2).values
    right = torch.where(edge, columns, 2 * far).flip(2).cummin(2).values.flip(2)
    along_rows = torch.minimum(columns - left, right - columns).clamp(max=MAX_DEPTH).float().square()
    squares = along_rows.clone()
    for shift in range(1, min(MAX_DEPTH, numbers.shape[1])):
        above, below = along_rows[:, :-shift] + shift**2, along_rows[:, shift:] + shift**2
        squares[:, shift:] = torch.minimum(squares[:, shift:], above)
        squares[:, :-shift] = torch.minimum(squares[:, :-shift], below)
    depth = (squares.sqrt() + 1) * (numbers > 0)
    first = 2**16 * torch.arange(len(numbers), device=numbers.device)
    objects = (numbers + first[:, None, None]).long()
    largest = depth.new_ones(2**16 * len(numbers)).scatter_reduce(0, objects.flatten(), depth.flatten(), "amax")
    return depth / largest[objects]


def boundary(numbers: Tensor) -> Tensor:
    """Pixels of an object beside another object or background, corners included; (B, H, W) int32 -> bool.

    What is outside the image is neither object nor background.
    """
    x = numbers[:, None].float()  # exact up to 2**24
    largest, smallest = (sign * functional.max_pool2d(sign * x, 3, 1, 1) for sign in (1, -1))
    return (largest != smallest)[:, 0] & (numbers > 0)


def _grow(seeds: np.ndarray, landscape: np.ndarray, foreground: np.ndarray, min_size: int) -> np.ndarray:
    """Watershed of numbered seeds; parts of the foreground that no seed reaches become objects of their own."""
    parts = components(foreground, min_size)
    regions = watershed(landscape, seeds, mask=parts > 0)
    sizes = np.bincount(regions.ravel(), minlength=seeds.max() + 1)
    small = (sizes > 0) & (sizes < min_size)
    if small.any():  # without their seeds, too small pieces go to their neighbors
        regions = watershed(landscape, np.where(small[seeds], 0, seeds), mask=parts > 0)
    return _numbered(np.where((parts > 0) & (regions == 0), parts + regions.max(), regions), min_size)


def _numbered(regions: np.ndarray, min_size: int) -> np.ndarray:
    """Objects of at least `min_size` pixels, numbered consecutively."""
    sizes = np.bincount(regions.ravel())
    kept = sizes >= max(min_size, 1)
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[regions]
