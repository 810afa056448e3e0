"""Outlines in GeoJSON files, drawn as masks and instances."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from skimage.draw import polygon as pixels_inside

from project.data.config import DatasetConfig
from project.data.path_patterns import field_values
from project.data.raw.georeference import check_crs, geotransform
from project.data.raw.ids import IdIndex
from project.data.raw.lazy_image import LazyImage, errors_mention
from project.data.raw.patterns import Pattern, files_below, match_files
from project.data.raw.samples import ImageRef, Problems, Sample
from project.data.raw.tables import GEOJSON, properties, read_geojson
from project.errors import UserError, bullet_list, did_you_mean

MOST = 2**16 - 1  # the largest number in a mask
Ring = np.ndarray  # (N, 2) float64, x and y
BAND = 2**24  # pixels that are drawn at a time to see which features are visible


@dataclass(frozen=True)
class Outline:
    """A feature as it is drawn.

    Attributes:
        place: Of the feature in its file, counted from 1; for messages.
        value: What its pixels get.
        polygons: Its polygons; of each the outer ring and then the holes.
    """

    place: int
    value: int
    polygons: tuple[tuple[Ring, ...], ...]


@dataclass(frozen=True)
class PolygonRef:
    """The outlines of one image, drawn as a mask.

    x goes to the right and y down, in pixels, and (0, 0) is the upper left corner of the image, so that the pixel in
    row i and column j has its centre at (j + 0.5, i + 0.5). A pixel belongs to a polygon if its centre lies in it or on
    its line, and to a hole likewise. Where features overlap, the later one is on top. What lies beyond the image is cut
    off.

    Attributes:
        path: The GeoJSON file.
        role: "mask" or "instances".
        image: Gives the size, and the geotransform if `geo`.
        geo: Whether the coordinates are those of the geotransform in the TIFF file of the image.
        crs: The coordinate system that the file declares; "" for none.
        dtype: "uint8" or "uint16".
        outlines: What is drawn, in this order.
    """

    path: Path
    role: str
    image: ImageRef
    geo: bool
    crs: str
    dtype: str
    outlines: tuple[Outline, ...] = field(repr=False, compare=False)  # given by the others

    @property
    def paths(self) -> tuple[Path, ...]:
        """The outlines and the image."""
        return (self.path, *self.image.paths)

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> LazyImage:
        """The mask, (1, H, W), drawn when it is read.

        Raises:
            UserError: A feature lies outside the image, none covers a pixel, there is no geotransform, or the image is
                in another coordinate system.
        """
        with errors_mention(self.image):
            _, height, width = self.image.open().shape
            to_pixels = np.eye(2, 3)
            if self.geo:
                check_crs(self.crs, self.image.paths[0])
                to_pixels = geotransform(self.image.paths[0])
        outlines = [_moved(outline, to_pixels) for outline in self.outlines]
        self._check_inside(outlines, height, width)

        def read(y0: int, y1: int) -> np.ndarray:
            return _drawn(outlines, y0, y1, width, self.dtype)[None]

        note = _hidden(outlines, height, width) if self.role == "instances" else ""
        return LazyImage((1, height, width), np.dtype(self.dtype), read, by_region=True, note=note)

    def _check_inside(self, outlines: Sequence[Outline], height: int, width: int) -> None:
        outside = []
        for outline in outlines:
            corners = np.concatenate([rings[0] for rings in outline.polygons])
            (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
            if x1 < 0 or y1 < 0 or x0 > width or y0 > height:
                outside.append(f"{outline.place} (x {x0:g} to {x1:g}, y {y0:g} to {y1:g})")
        if outside:
            hint = "in the coordinate system of the image" if self.geo else "pixels, x before y"
            raise UserError(
                f"no part of feature {', '.join(outside[:3])}{' ...' if len(outside) > 3 else ''} lies in the image of "
                f"{width} x {height} pixels; are the coordinates {hint}?"
            )


def _moved(outline: Outline, transform: np.ndarray) -> Outline:
    polygons = tuple(tuple(ring @ transform[:, :2].T + transform[:, 2] for ring in rings) for rings in outline.polygons)
    return replace(outline, polygons=polygons)


def _drawn(outlines: Sequence[Outline], y0: int, y1: int, width: int, dtype: str) -> np.ndarray:
    """The rows y0 to y1 of the mask, (y1 - y0, W)."""
    mask = np.zeros((y1 - y0, width), dtype)
    for outline in outlines:
        for rings in outline.polygons:
            _draw(mask, rings, y0, outline.value)
    return mask


def _hidden(outlines: Sequence[Outline], height: int, width: int) -> str:
    """The note on features of which no pixel is visible; "" where all are.

    Raises:
        UserError: There are features, and none covers a pixel.
    """
    numbered = [replace(outline, value=i) for i, outline in enumerate(outlines, start=1)]
    rows = max(BAND // width, 1)
    bands = [(y0, min(y0 + rows, height)) for y0 in range(0, height, rows)]
    visible = set().union(*(np.unique(_drawn(numbered, *band, width, "uint16")).tolist() for band in bands))
    told = []
    for outline in (outline for outline in numbered if outline.value not in visible):
        corners = np.concatenate([rings[0] for rings in outline.polygons])
        (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
        top, bottom = int(np.clip(y0, 0, height)), int(np.clip(np.ceil(y1), 0, height))
        covers = _drawn([outline], top, bottom, width, "uint16").any()
        why = "is covered by later ones" if covers else f"covers no pixel centre ({x1 - x0:.2g} x {y1 - y0:.2g} pixels)"
        told.append(f"feature {outline.place} {why}")
    if told and len(told) == len(outlines):
        raise UserError(f"no feature covers a pixel: {told[0]}; are the coordinates pixels of this image?")
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    return f"shows {len(outlines) - len(told)} of {len(outlines)} features: {', '.join(told[:3])}{more}" if told else ""


def _draw(mask: np.ndarray, rings: Sequence[Ring], top: int, value: int) -> None:
    """Draw a polygon into (rows, W), the rows of an image from `top` on."""
    # In the coordinates of skimage the centre of the first pixel is (0, 0).
    shifted = [ring - (0.5, 0.5 + top) for ring in rings]
    (x0, y0), (x1, y1) = np.floor(shifted[0].min(axis=0)), np.ceil(shifted[0].max(axis=0)) + 1
    left, upper = max(int(x0), 0), max(int(y0), 0)
    part = mask[upper : max(int(y1), 0), left : max(int(x1), 0)]
    if not part.size:
        return
    inside = np.zeros(part.shape, bool)
    for number, ring in enumerate(shifted):
        inside[pixels_inside(ring[:, 1] - upper, ring[:, 0] - left, part.shape)] = number == 0
    part[inside] = value


Features = list[tuple[int, dict[str, Any]]]  # with their places in the file, counted from 1


@dataclass(frozen=True)
class OutlineFile:
    """The features of one image, the file that they are in, and the coordinate system that it declares."""

    path: Path
    features: Features
    crs: str

    @classmethod
    def read(cls, path: Path, coordinates: str) -> "OutlineFile":
        """All features of a file.

        Raises:
            UserError: It cannot be read, or `coordinates` are "pixel" and the file declares a coordinate system.
        """
        features, crs = read_geojson(path)
        if crs and coordinates == "pixel":
            raise UserError(
                f'{path}: the outlines are in the coordinate system "{crs}" and not in pixels; set `coordinates: geo` '
                "in `polygons`, or remove `crs` from the file"
            )
        return cls(path, list(enumerate(features, start=1)), crs)


def add_polygons(samples: list[Sample], config: DatasetConfig, problems: Problems) -> list[Sample]:
    """The samples with `instances` and, where features have a class, `mask`, if there are outlines.

    Objects are counted from 1 in the order of the file. A sample without features has empty masks.

    Args:
        samples: All samples.
        config: Of the dataset.
        problems: Gets samples whose outlines are missing or wrong, and features that belong to no sample.

    Raises:
        UserError: No such file or property, or names of classes where `classes` gives none.
    """
    if not (options := config.polygons):
        return samples
    ids = [sample.id for sample in samples]
    known = set(ids) | problems.known
    find = _of_many_files if "{" in options.path else _of_one_file
    files = find(ids, known, config, problems)
    names, drawn = config.class_names("mask"), dict[str, list[tuple[int, Outline]]]()
    if options.label:
        _check_named([row for file in files.values() for row in map(_row, file.features)], options.label, names)
    for id_, file in files.items():
        try:
            if (n := len(file.features)) > MOST:
                raise UserError(f"{n} features; only {MOST} can be told apart")
            drawn[id_] = [(_class_number(each, options.label, config), _outline(*each)) for each in file.features]
        except UserError as error:
            problems.add(id_, f"{file.path}: {error}")
    problems.raise_or_skip("The outlines do not fit the images:")
    samples = [sample for sample in samples if sample.id in drawn]
    # One dtype for all images.
    counts = _dtype([len(each) for each in drawn.values()])
    classes = _dtype([number for each in drawn.values() for number, _ in each])
    complete = []
    for sample in samples:
        file, image, geo = files[sample.id], sample.images["image"][0], options.coordinates == "geo"
        numbered = tuple(replace(o, value=i) for i, (_, o) in enumerate(drawn[sample.id], start=1))
        images = {
            **sample.images,
            "instances": [PolygonRef(file.path, "instances", image, geo, file.crs, counts, numbered)],
        }
        if options.label:
            classed = tuple(replace(outline, value=number) for number, outline in drawn[sample.id])
            images["mask"] = [PolygonRef(file.path, "mask", image, geo, file.crs, classes, classed)]
        complete.append(replace(sample, images=images))
    return complete


def _dtype(numbers: Sequence[int]) -> str:
    return "uint16" if max(numbers, default=0) > 255 else "uint8"


def _row(feature: tuple[int, dict[str, Any]]) -> dict[str, str]:
    return properties(feature[1])


def _of_one_file(ids: list[str], known: set[str], config: DatasetConfig, problems: Problems) -> dict[str, OutlineFile]:
    """Id -> the file and the features of that image."""
    assert config.polygons
    path, column = Path(config.raw) / config.polygons.path, config.polygons.image
    if not path.is_file():
        raise UserError(f'the outlines "{path}" do not exist')
    file = OutlineFile.read(path, config.polygons.coordinates)
    if column is None:
        if len(ids) != 1:
            raise UserError(
                f'polygons: "{config.polygons.path}" is one file for {len(ids)} images; say by `image` which property '
                "of a feature has the image's id, or give a pattern such as outlines/{id}.geojson"
            )
        return {ids[0]: file}
    rows = [_row(feature) for feature in file.features]
    _check_property(rows, column, path)
    found = {id_: replace(file, features=[]) for id_ in ids}
    stray: dict[str, list[int]] = {}
    index = IdIndex(known)
    for row, feature in zip(rows, file.features, strict=True):
        id_ = index.find(row.get(column, ""))
        if id_ in found:
            found[id_].features.append(feature)
        elif id_ not in known:
            stray.setdefault(id_, []).append(feature[0])
    problems.notes += index.describe_bridged(path)
    for id_, places in stray.items():
        told = ", ".join(map(str, places[:3])) + (" ..." if len(places) > 3 else "")
        problems.add(id_ or f"feature {told}", f'no image has this "{column}" (feature {told} of {path})')
    return found


def _of_many_files(
    ids: list[str], known: set[str], config: DatasetConfig, problems: Problems
) -> dict[str, OutlineFile]:
    """Id -> its file and all features in it."""
    assert config.polygons
    raw, values = Path(config.raw), field_values(config.all_patterns())
    pattern = Pattern.parse(config.polygons.path, GEOJSON, values)
    for text in list(config.image.values())[:1]:
        if set(Pattern.parse(text).fields) != set(pattern.fields):
            raise UserError(f'"{pattern.text}" and "{text}" must have the same fields, or files cannot be paired')
    matches, found = match_files(pattern, raw, files_below(raw), problems), dict[str, OutlineFile]()
    for id_ in ids:
        if id_ not in matches.files:
            problems.add(id_, f'no file for "{pattern.text}"')
            continue
        try:
            found[id_] = OutlineFile.read(raw / matches.files[id_], config.polygons.coordinates)
        except UserError as error:
            problems.add(id_, str(error))
    for id_ in sorted(matches.files.keys() - known):
        problems.add(id_, f"{matches.files[id_]} has no image")
    return found


def _check_property(rows: list[dict[str, str]], name: str, path: Path | str) -> None:
    there = {column for row in rows for column in row}
    if rows and name not in there:
        raise UserError(f'{path}: no feature has the property "{name}".{did_you_mean(name, there)}')


def _check_named(rows: list[dict[str, str]], label: str, names: list[str]) -> None:
    _check_property(rows, label, "polygons")
    texts = sorted({text for row in rows if (text := row.get(label, "")) and not text.isdecimal()})
    if texts and not names:
        raise UserError(
            f'polygons: the "{label}" of the features is a name; give all in `classes: {{mask: [background, ...]}}`:\n'
            f"{bullet_list(texts)}"
        )


def _class_number(feature: tuple[int, dict[str, Any]], label: str | None, config: DatasetConfig) -> int:
    if label is None:
        return 1
    text, names = _row(feature).get(label, ""), config.class_names("mask")
    if text in names:
        return names.index(text)
    number = int(text) if text.isdecimal() else MOST + 1
    if number == config.ignore_index or number < (len(names) or MOST + 1):
        return number
    told = f'the "{label}" of feature {feature[0]} is "{text}"' if text else f'feature {feature[0]} has no "{label}"'
    raise UserError(f"{told}; the classes are {', '.join(names) if names else f'numbers up to {MOST}'}")


def _outline(place: int, feature: dict[str, Any]) -> Outline:
    """The feature, whose value is still to be set.

    Raises:
        UserError: It is no polygon.
    """
    try:
        polygons = _polygons(feature["geometry"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the geometry of feature {place} cannot be read") from error
    except UserError as error:
        raise UserError(f"feature {place} {error}") from error
    return Outline(place, 0, polygons)


def _polygons(geometry: dict[str, Any] | None) -> tuple[tuple[Ring, ...], ...]:
    if geometry is None:
        raise UserError("has no geometry")
    kind = geometry["type"]
    if kind == "GeometryCollection":
        return tuple(each for part in geometry["geometries"] for each in _polygons(part))
    if kind not in ("Polygon", "MultiPolygon"):
        raise UserError(f"is a {kind}; only Polygon and MultiPolygon can be drawn")
    coordinates = geometry["coordinates"] if kind == "MultiPolygon" else [geometry["coordinates"]]
    if not coordinates or not all(coordinates):
        raise UserError("is empty")
    return tuple(tuple(_ring(points) for points in rings) for rings in coordinates)


def _ring(points: list[list[str]]) -> Ring:
    ring = np.array([point[:2] for point in points], np.float64).reshape(-1, 2)
    if len(ring) < 3 or not np.isfinite(ring).all():
        raise UserError("has a ring that is none: three finite points are needed")
    return ring
