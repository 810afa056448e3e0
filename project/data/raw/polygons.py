"""Outlines in GeoJSON files, one for each image, drawn as masks and instances."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from skimage.draw import polygon as pixels_inside

from project.data.raw.lazy_image import LazyImage, errors_mention
from project.data.raw.samples import ImageRef, first_ids
from project.data.raw.tables import read_text
from project.errors import UserError, did_you_mean

SUFFIXES = {".geojson", ".json"}
NO_CRS = {"", "none", "null", "pixel", "pixels", "local"}  # names that some software writes for pixel coordinates
HIGHEST = 2**16 - 1  # in a mask
Feature = dict[str, Any]


@dataclass(frozen=True)
class PolygonRef:
    """Reference to the outlines of one image, which are drawn as a mask.

    x points to the right and y down, in pixels, and (0, 0) is the upper left corner of the image: the pixel in row i
    and column j has its center at (j + 0.5, i + 0.5). A pixel belongs to a polygon (or a hole) if its center is inside
    or on its line. Where features overlap, the later one is on top. Parts outside the image are cut off.
    """

    path: Path
    image: ImageRef  # gives the size
    label: str | None = None  # property with the class; None draws object numbers, from 1 in the order of the file
    classes: tuple[str, ...] = ()  # their names
    ignore_index: int | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The outlines and the image."""
        return (self.path, *self.image.paths)

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> LazyImage:
        """The mask, (1, H, W)."""
        with errors_mention(self.image):
            _, height, width = self.image.open().shape
        status = self.path.stat()
        features, mask, note = _draw(self.path, height, width, status.st_mtime_ns, status.st_size)
        if self.label:
            values = [0, *(self._class_number(number, feature) for number, feature in enumerate(features, start=1))]
            mask, note = np.array(values, _dtype(max(values)))[mask], ""
        image = LazyImage((1, height, width), mask.dtype, "CYX", lambda index: mask[None][index], reads_rows=True)
        return image.with_notes(note)

    def _class_number(self, number: int, feature: Feature) -> int:
        assert self.label
        value, names = _lookup(feature.get("properties"), self.label), self.classes
        text = "" if value is None else str(value).strip()
        if text in names:
            return names.index(text)
        class_ = int(text) if text.isdecimal() else HIGHEST + 1
        if class_ == self.ignore_index or class_ < (len(names) or HIGHEST + 1):
            return class_
        if not text:
            hint = did_you_mean(self.label, feature.get("properties") or {})
            raise UserError(f'feature {number} has no property "{self.label}".{hint}')
        classes = f"the classes are {', '.join(names)}" if names else "name all in `classes: {mask: [background, ...]}`"
        raise UserError(f'the "{self.label}" of feature {number} is "{text}"; {classes}')


def _dtype(highest: int) -> type[np.integer]:
    return np.uint16 if highest > 255 else np.uint8


@functools.lru_cache(maxsize=4)
def _draw(path: Path, height: int, width: int, changed: int, size: int) -> tuple[list[Feature], np.ndarray, str]:
    """Features of a file, their numbers in (H, W) pixels, and a note on those of which no pixel is visible.

    Time stamp and size: a changed file is drawn again.
    """
    features = read_geojson(path)
    if len(features) > HIGHEST:
        raise UserError(f"{len(features)} features; at most {HIGHEST} are possible")
    mask = np.zeros((height, width), _dtype(len(features)))
    for number, feature in enumerate(features, start=1):
        polygons = _polygons(number, feature)
        corners = np.concatenate([rings[0] for rings in polygons])
        (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
        if x1 < 0 or y1 < 0 or x0 > width or y0 > height:
            raise UserError(
                f"no part of feature {number} (x {x0:g} to {x1:g}, y {y0:g} to {y1:g}) is in the image of "
                f"{width} x {height} pixels; are the coordinates pixels, x before y?"
            )
        for rings in polygons:
            # In the coordinates of skimage the center of the first pixel is (0, 0).
            outer, *holes = (pixels_inside(ring[:, 1] - 0.5, ring[:, 0] - 0.5, mask.shape) for ring in rings)
            below = [mask[hole] for hole in holes]
            mask[outer] = number
            for hole, values in zip(holes, below, strict=True):
                mask[hole] = values
    hidden = sorted(set(range(1, len(features) + 1)) - set(np.unique(mask).tolist()))
    if hidden and len(hidden) == len(features):
        raise UserError("no feature covers a pixel center; are the coordinates pixels of this image?")
    shown = (
        f"shows {len(features) - len(hidden)} of {len(features)} features; others cover no pixel center or are below"
    )
    note = f"{shown} later ones: {first_ids([f'feature {number}' for number in hidden])}" if hidden else ""
    return features, mask, note


def read_geojson(path: Path) -> list[Feature]:
    """The features of a GeoJSON file: a FeatureCollection, a list of features, or a single one; in pixels."""
    content = features = json.loads(read_text(path))
    if isinstance(content, dict):
        features = content.get("features", [content] if content.get("type") == "Feature" else None)
    if not isinstance(features, list) or not all(isinstance(f, dict) and f.get("type") == "Feature" for f in features):
        raise UserError("not a GeoJSON file with features")
    for member in (content, *features):
        crs = _lookup(member, "crs")  # The GeoJSON Format Specification (2008), section 3
        properties = _lookup(crs, "properties")
        name = properties["name"] if isinstance(properties, dict) and "name" in properties else crs
        if str(name or "").casefold() not in NO_CRS:
            raise UserError(
                f'the outlines are in the coordinate system "{name}", not in pixels of the image; convert them, and '
                "remove `crs` from the file"
            )
    return features


def _lookup(content: Any, key: str) -> Any:
    """The value of a key, or None; "classification.name" is that of an object in an object."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _polygons(number: int, feature: Feature) -> list[list[np.ndarray]]:
    """Of each polygon of a feature the outer ring and then the holes, (N, 2) float64 of x and y."""
    geometry = feature.get("geometry") or {}
    kind = geometry.get("type", "feature without geometry")
    if kind not in ("Polygon", "MultiPolygon"):
        raise UserError(f"feature {number} is a {kind}; only Polygon and MultiPolygon can be drawn")
    try:
        coordinates = geometry["coordinates"] if kind == "MultiPolygon" else [geometry["coordinates"]]
        polygons = [[np.array([point[:2] for point in ring], np.float64) for ring in rings] for rings in coordinates]
        is_valid = polygons and all(polygons)
    except (LookupError, TypeError, ValueError):
        is_valid = False
    if not is_valid or any(r.shape != (max(len(r), 3), 2) or not np.isfinite(r).all() for rs in polygons for r in rs):
        raise UserError(f"feature {number} is not made of rings of at least 3 finite points each")
    return polygons
