"""What files hold, by their headers and the pixels of a few: images, class masks or object numbers."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy import ndimage

from project.data.duplicates import signature, similar_pairs
from project.data.raw.images import arrange, further_axes, with_axes
from project.data.raw.lazy_image import LazyImage
from project.data.raw.readers import read_header
from project.errors import UserError

MOST_HEADERS = 2000
MOST_MASKS = 48  # whose values are looked at
MOST_PIXELS = 4_000_000  # of one image; of larger ones the first rows
# Neighboring pixels of masks are equal, of images with noise they are not; the most common value, often background,
# is left out.
MIN_EQUAL = 0.5
MOST_CLASSES = 64
MOST_PARTS = 1.25  # connected parts per object number: a few objects are cut in two
MIN_SIMILAR = 0.5  # of the successive images look the same: frames of one field
PAIRED = 0.2  # by which images of one name correlate more than others where folders are channels of one image


@dataclass(frozen=True)
class Content:
    """What was seen in the files of a stream."""

    kind: str = "image"  # or mask, instances, unclear (one of these two), colors (a color for each class)
    values: tuple[int, ...] = ()  # of a mask, as far as seen
    diameter: float = 0.0  # mean of objects, pixels
    all_equal: bool = False  # several channels with the same values
    n_looked: int = 0  # number of files whose pixels were read
    n_blank: int = 0  # of these, with one value everywhere
    channels: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    axes: dict[str, int] = field(default_factory=dict)  # of most files, further than Y, X and colors
    mixed: str = ""  # alpha or palettes


def look(raw: Path, names: list[str]) -> Content:
    """The content of files; unreadable ones are left to `make data`, which lists them."""
    headers = [header for name in _spread(sorted(names), MOST_HEADERS) if (header := _header(raw / name))]
    axes = [further_axes(header) for header in headers]
    channels = [of.pop("C", 1) if header.has_colors else 1 for header, of in zip(headers, axes, strict=True)]
    pages = [page for header in _spread(headers, MOST_MASKS) if (page := _first_page(header)) is not None]
    seen = summary(pages[:8])
    if seen.kind != "image":  # the values of more files
        seen = summary(pages)
    mixed = "; alpha is dropped" * any(header.alpha for header in headers)
    mixed += "; palettes are looked up" * any(header.indexed for header in headers)
    sizes = Counter((h.shape[h.axes.index("Y")], h.shape[h.axes.index("X")]) for h in headers)
    usual = Counter(tuple(of.items()) for of in axes).most_common(1)
    of_most = dict(usual[0][0]) if usual else {}
    n_blank = sum(int(page.min() == page.max()) for page in pages)
    looked = replace(seen, n_looked=len(pages), n_blank=n_blank, mixed=mixed)
    return replace(looked, channels=Counter(channels), sizes=sizes, axes=of_most)


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most so many, evenly spaced."""
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else items


def _header(path: Path) -> LazyImage | None:
    try:
        return with_axes(read_header(path), None)
    except (UserError, OSError, ValueError):
        return None


def _first_page(header: LazyImage | None) -> np.ndarray | None:
    """(C, H, W) pixels of the first page, of large images the first rows; None where they cannot be read."""
    if header is None:
        return None
    pages = {axis: "channels" if axis == "C" and header.has_colors else 0 for axis in further_axes(header)}
    try:
        image = arrange(header, tuple(pages.items()), exact=True)
        return image.rows(0, min(image.shape[1], max(64, MOST_PIXELS // image.shape[2])))
    except Exception:  # whatever a decoder raises for a broken file, which `make data` reports
        return None


def summary(images: list[np.ndarray]) -> Content:
    """Kind, values and diameter of the objects of images (C, H, W)."""
    if not images or not all(image.dtype.kind in "uib" or (image % 1 == 0).all() for image in images):
        return Content()
    equal = all(len(image) > 1 and (image[:3] == image[0]).all() for image in images)
    numbered = [np.asarray(sum(c.astype(np.int64) << (8 * i) for i, c in enumerate(image[:3]))) for image in images]
    planes = [image[0] if equal or len(image) == 1 else n for image, n in zip(images, numbered, strict=True)]
    present = [plane for plane in planes if plane.min() < plane.max()]
    if not present or np.median([_equal_share(plane) for plane in present]) < MIN_EQUAL:
        return Content(all_equal=equal)
    values = sorted({int(value) for plane in planes for value in np.unique(plane)})
    steps = np.concatenate([np.abs(np.diff(plane.astype(np.int64))).ravel() for plane in present])
    if len(values) > MOST_CLASSES and np.median(steps[steps > 0]) <= 1:  # a smooth image
        return Content(all_equal=equal)
    if len(images[0]) > 1 and not equal:
        return Content("colors" if len(values) <= MOST_CLASSES else "image")
    kind, diameter = _kind_of_mask(present, values)
    return Content(kind, tuple(values[:300]), diameter, equal)


def _equal_share(plane: np.ndarray) -> float:
    """Share of the pixels that equal their right neighbor, where not both have the most common value."""
    values, counts = np.unique(plane, return_counts=True)
    left, right, usual = plane[:, :-1], plane[:, 1:], values[counts.argmax()]
    counted = (left != usual) | (right != usual)
    return float((left == right)[counted].mean()) if counted.any() else 1.0


def _kind_of_mask(planes: list[np.ndarray], values: list[int]) -> tuple[str, float]:
    """Whether integers are class numbers or object numbers, and the mean diameter of connected parts."""
    sets = [frozenset(np.unique(plane).tolist()) - {0} for plane in planes]
    areas = [plane == v for plane, present in zip(planes[:8], sets, strict=False) for v in sorted(present)[:50]]
    n_parts = sum(max(1, ndimage.label(area)[1]) for area in areas)
    diameter = float(sum(area.sum() for area in areas) / max(n_parts, 1)) ** 0.5
    largest, is_same = max(map(len, sets)), len(sets) > 1 and len(set(sets)) == 1
    if len(values) <= 2 or largest < 2:
        return "mask", diameter
    if n_parts > MOST_PARTS * len(areas):
        return ("mask" if len(values) <= MOST_CLASSES else "unclear"), diameter
    if largest >= 3 and not (is_same and largest < 10):
        return "instances", diameter
    return ("mask" if is_same else "unclear"), diameter


def is_one_field(raw: Path, names: list[str]) -> bool:
    """Whether successive images look the same, as the check for near-duplicates between splits sees them."""
    pages = [_first_page(_header(raw / name)) for name in sorted(names)[:16]]
    signatures = np.array([signature(page) for page in pages if page is not None])
    if len(signatures) < 3:
        return False
    pairs = {*similar_pairs(signatures)}
    return sum((i, i + 1) in pairs for i in range(len(signatures) - 1)) >= MIN_SIMILAR * (len(signatures) - 1)


def show_the_same(raw: Path, first: list[str], other: list[str]) -> bool:
    """Whether images show the same field as their partners, which may be dark where they are bright: by gradients."""
    a, b = ([_gradients(raw / name) for name in names[:8]] for names in (first, other))
    same = [np.mean(x * y) for x, y in zip(a, b, strict=True)]
    different = [np.mean(x * y) for x, y in zip(a, b[1:] + b[:1], strict=True)]
    return len(a) >= 3 and bool(np.mean(same) > np.mean(different) + PAIRED)


def _gradients(path: Path) -> np.ndarray:
    """(32, 32) mean size of the gradients of an image, with the mean 0 and the variance 1; 0 where there are none."""
    pixels = _first_page(_header(path))
    if pixels is None or min(pixels.shape[1:]) < 8:
        return np.zeros((32, 32))
    size = np.hypot(*np.gradient(pixels.mean(axis=0, dtype=np.float64)))
    size = cv2.resize(size, (32, 32), interpolation=cv2.INTER_AREA)
    return (size - size.mean()) / (size.std() or 1)
