"""Size and number of training crops that fit a dataset."""

from collections.abc import Sequence

# Steps of an epoch: with fewer, validation would take most of the time; with more, results would come too late.
MIN_STEPS, MAX_STEPS = 4, 1000


def largest_crop(sizes: Sequence[tuple[int, ...]], divisor: int = 1) -> int:
    """Side of the largest square that is in all images, in pixels.

    Args:
        sizes: Height and width of each image.
        divisor: The side is a multiple of it if the images are large enough.
    """
    shortest = min(map(min, sizes))
    return shortest // divisor * divisor or shortest


def automatic_crops(sizes: Sequence[tuple[int, int]], crop: int | None, batch_size: int) -> int:
    """Crops of each image in an epoch: as many as cover the area of the images once, within limits.

    An epoch has at least `MIN_STEPS` steps, for which small images are repeated, and at most `MAX_STEPS`, unless there
    are more images.

    Args:
        sizes: Height and width of each image, in pixels.
        crop: Side of the crops; None for whole images.
        batch_size: Samples of a step.
    """
    n = len(sizes)
    by_area = round(sum(height * width for height, width in sizes) / n / crop**2) if crop else 1
    return max(min(by_area, MAX_STEPS * batch_size // n), -(-MIN_STEPS * batch_size // n), 1)
