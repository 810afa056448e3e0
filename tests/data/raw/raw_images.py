"""Open image files in tests, and compare them with the arrays that were written."""

from pathlib import Path
from typing import Any

import numpy as np

from project.data.raw.images import FileRef
from project.data.raw.lazy_image import LazyImage

RNG = np.random.default_rng(0)
GRAY8 = RNG.integers(0, 256, (7, 9), np.uint8)
GRAY16 = RNG.integers(0, 65536, (7, 9), np.uint16)
STACK16 = RNG.integers(0, 65536, (3, 7, 9), np.uint16)
RGB8 = RNG.integers(0, 256, (7, 9, 3), np.uint8)


def open_image(path: Path, axes: str | None = None, pages: Any = None) -> LazyImage:
    return FileRef(path, axes, pages).open()


def read(image: LazyImage) -> np.ndarray:
    return image.rows(0, image.shape[1])


def note(image: LazyImage) -> str:
    return "; ".join(image.notes)


def check_image(image: LazyImage, expected: np.ndarray) -> None:
    """Header and pixels, whole, in bands and in windows, agree with each other and with `expected` (C, H, W)."""
    height, width = expected.shape[1:]
    assert (image.shape, image.dtype, image.axes) == (expected.shape, expected.dtype, "CYX")
    for y0, y1 in ((0, height), (0, 1), (height - 1, height), (height // 3, height // 2 + 1)):
        array = image.rows(y0, y1)
        assert array.dtype == expected.dtype  # in native byte order too
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, expected[:, y0:y1])
    window = (slice(0, len(expected)), slice(height // 3, height), slice(width // 4, width // 2 + 1))
    np.testing.assert_array_equal(image.read(window), expected[window])


def check(path: Path, expected: np.ndarray, axes: str | None = None, **options: Any) -> None:
    check_image(open_image(path, axes, **options), expected)
