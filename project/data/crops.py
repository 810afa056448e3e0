"""Crops: size and number that fit a dataset, the middle of an image; samples from all over a split."""

from collections.abc import Sequence

import numpy as np

from project.data.store import Window

# Steps of an epoch: with fewer, validation would take most of the time; with more, results would come too late.
MIN_STEPS, MAX_STEPS = 4, 1000


def largest_crop(sizes: Sequence[tuple[int, ...]], divisor: int = 1) -> int:
    """Side of the largest square that is in all images, a multiple of `divisor` if they are large enough; pixels."""
    shortest = min(map(min, sizes))
    return shortest // divisor * divisor or shortest


def automatic_crops(sizes: Sequence[tuple[int, int]], crop: int | None, batch_size: int) -> int:
    """Crops of each image in an epoch: as many as cover the area of the images once, within limits.

    An epoch has at least `MIN_STEPS` steps, for which small images are repeated, and at most `MAX_STEPS`, unless there
    are more images. `crop` is the side of the crops, None for whole images.
    """
    n = len(sizes)
    return max(min(crops_by_area(sizes, crop), MAX_STEPS * batch_size // n), -(-MIN_STEPS * batch_size // n), 1)


def crops_by_area(sizes: Sequence[tuple[int, int]], crop: int | None) -> int:
    """Crops of each image that cover the area of the images once, on average."""
    area = sum(height * width for height, width in sizes)
    return max(round(area / len(sizes) / crop**2), 1) if crop else 1


def spread(n: int, most: int) -> list[int]:
    """At most `most` of `n` positions, evenly spaced."""
    positions: list[int] = np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()
    return positions


def middle(shape: Sequence[int], side: int) -> Window:
    """The window (y0, y1, x0, x1) in the middle of an image (..., H, W), at most `side` pixels high and wide."""
    (y0, y1), (x0, x1) = ((start := max(size - side, 0) // 2, min(start + side, size)) for size in shape[-2:])
    return y0, y1, x0, x1
