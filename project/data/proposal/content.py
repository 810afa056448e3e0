"""What the files of a stream hold, by their headers and the pixels of a few: images, class masks or object numbers."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from project.data.raw.images import further_axes, with_axes
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

Kind = Literal["image", "mask", "instances", "unclear", "colors"]


@dataclass(frozen=True)
class Content:
    """What was seen in the files of a stream."""

    kind: Kind = "image"
    values: tuple[int, ...] = ()  # of a mask, as far as seen
    n_looked: int = 0  # number of files whose pixels were read
    diameter: float = 0.0  # mean of objects, pixels
    channels: Counter[int] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    axes: Counter[tuple[tuple[str, int], ...]] = field(default_factory=Counter)  # further than Y, X and colors
    alpha: bool = False
    indexed: bool = False
    all_equal: bool = False  # several channels with the same values


def spread(names: list[str], most: int) -> list[str]:
    """At most so many, evenly spaced in the order of the names."""
    names = sorted(names)
    return [names[i * len(names) // most] for i in range(most)] if len(names) > most else names


def look(raw: Path, names: list[str]) -> Content:
    """The content of files; unreadable ones are left to `make data`, which lists them."""
    content = Content()
    headers = {name: header for name in spread(names, MOST_HEADERS) if (header := open_quietly(raw / name))}
    for header in headers.values():
        axes = further_axes(header)
        n_colors = axes.pop("C", 1) if header.has_colors else 1
        content.channels[n_colors] += 1
        content.dtypes[header.dtype.name] += 1
        content.sizes[header.shape[header.axes.index("Y")], header.shape[header.axes.index("X")]] += 1
        content.axes[tuple(axes.items())] += 1
    looked = [pixels for name in spread(list(headers), MOST_MASKS) if (pixels := first_page(headers[name])) is not None]
    seen = summary(looked[:8])
    if seen["kind"] != "image":  # the values of more files
        seen = summary(looked)
    return Content(
        **seen,
        n_looked=len(looked),
        channels=content.channels,
        dtypes=content.dtypes,
        sizes=content.sizes,
        axes=content.axes,
        alpha=any(header.alpha for header in headers.values()),
        indexed=any(header.indexed for header in headers.values()),
    )


def open_quietly(path: Path) -> LazyImage | None:
    """The header of a file, None where it cannot be read."""
    try:
        return with_axes(read_header(path), None)
    except (UserError, OSError, ValueError):
        return None


def first_page(header: LazyImage) -> np.ndarray | None:
    """(C, H, W) pixels of the first page, of large images the first rows; None where they cannot be read."""
    height, width = (header.shape[header.axes.index(axis)] for axis in "YX")
    parts = {"Y": slice(0, max(64, min(height, MOST_PIXELS // width))), "X": slice(0, width)}
    if header.has_colors:
        parts["C"] = slice(0, header.shape[header.axes.index("C")])
    try:
        pixels = np.asarray(header.read(tuple(parts.get(axis, 0) for axis in header.axes)))
    except Exception:  # whatever a decoder raises for a broken file, which `make data` reports
        return None
    order = [axis for axis in header.axes if axis in parts]
    return pixels.transpose([order.index(axis) for axis in "CYX" if axis in order]).reshape(
        -1, *(pixels.shape[order.index(axis)] for axis in "YX")
    )


def summary(images: list[np.ndarray]) -> dict:
    """Kind, values and diameter of the objects of images (C, H, W), as arguments of `Content`."""
    if not images or not all(image.dtype.kind in "uib" or (image % 1 == 0).all() for image in images):
        return {"kind": "image"}
    equal = all(len(image) > 1 and (image[:3] == image[0]).all() for image in images)
    planes = [image[0] for image in images] if equal else [_colors(image[:3]) for image in images]
    present = [plane for plane in planes if plane.min() < plane.max()]
    if not present or np.median([_equal_share(plane) for plane in present]) < MIN_EQUAL:
        return {"kind": "image", "all_equal": equal}
    values = sorted({int(value) for plane in planes for value in np.unique(plane)})
    steps = [step for plane in present for step in np.abs(np.diff(plane.astype(np.int64))).ravel() if step]
    if len(values) > MOST_CLASSES and np.median(steps) <= 1:  # a smooth image
        return {"kind": "image", "all_equal": equal}
    if len(images[0]) > 1 and not equal:
        return {"kind": "colors" if len(values) <= MOST_CLASSES else "image"}
    kind, diameter = _kind_of_mask(present, values)
    return {"kind": kind, "values": tuple(values[:300]), "diameter": diameter, "all_equal": equal}


def _colors(image: np.ndarray) -> np.ndarray:
    """(H, W) one number for each color."""
    if len(image) == 1:
        return image[0]
    return sum(channel.astype(np.int64) << (8 * i) for i, channel in enumerate(image))


def _equal_share(plane: np.ndarray) -> float:
    """Share of the pixels that equal their right neighbor, where not both have the most common value."""
    values, counts = np.unique(plane, return_counts=True)
    common = values[counts.argmax()]
    left, right = plane[:, :-1], plane[:, 1:]
    counted = (left != common) | (right != common)
    return float((left == right)[counted].mean()) if counted.any() else 1.0


def _kind_of_mask(planes: list[np.ndarray], values: list[int]) -> tuple[Kind, float]:
    """Whether integers are class numbers or object numbers, and the mean diameter of connected parts."""
    n_values, n_parts, n_pixels = 0, 0, 0
    sets = [frozenset(np.unique(plane).tolist()) - {0} for plane in planes]
    for plane, present in zip(planes[:8], sets[:8], strict=True):
        for value in sorted(present)[:50]:
            n_values += 1
            n_parts += max(1, ndimage.label(plane == value)[1])
            n_pixels += int((plane == value).sum())
    diameter = (n_pixels / max(n_parts, 1)) ** 0.5
    largest = max(len(present) for present in sets)
    if len(values) <= 2 or largest < 2:
        return "mask", diameter
    if n_parts <= MOST_PARTS * n_values:
        is_same = len(sets) > 1 and len(set(sets)) == 1
        if largest >= 3 and not (is_same and largest < 10):
            return "instances", diameter
        return ("mask" if is_same else "unclear"), diameter
    return ("mask" if len(values) <= MOST_CLASSES else "unclear"), diameter


def successive_images(raw: Path, names: list[str], most: int = 16) -> Iterable[np.ndarray]:
    """(C, H, W) pixels of the first files in the order of their names."""
    for name in sorted(names)[:most]:
        header = open_quietly(raw / name)
        if header and (pixels := first_page(header)) is not None:
            yield pixels
