"""Outlines in GeoJSON files, drawn as masks and instances."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from skimage.draw import polygon as pixels_inside

from project.data.config import DatasetConfig
from project.data.raw.images import TIFF, ImageFile, naming
from project.data.raw.patterns import Pattern, files_below, match
from project.data.raw.ranges import field_values
from project.data.raw.samples import ImageRef, Problems, Sample
from project.data.raw.tables import GEOJSON, IdIndex, properties, read_features
from project.errors import UserError, listed, nearest

MOST = 2**16 - 1  # the largest number in a mask
Ring = np.ndarray  # (N, 2) float64, x and y
# GeoTIFF, version 1.1: numbers of its TIFF tags, and of the key that says what the coordinates of a pixel mean.
PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, KEYS, RASTER_TYPE, PIXEL_IS_POINT = 33550, 33922, 34264, 34735, 1025, 2


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
        dtype: "uint8" or "uint16".
        outlines: What is drawn, in this order.
    """

    path: Path
    role: str
    image: ImageRef
    geo: bool
    dtype: str
    outlines: tuple[Outline, ...] = field(repr=False, compare=False)  # given by the others

    @property
    def paths(self) -> tuple[Path, ...]:
        """The outlines and the image."""
        return (self.path, *self.image.paths)

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> ImageFile:
        """The mask, (1, H, W), drawn when it is read.

        Raises:
            UserError: A feature lies outside the image, or there is no geotransform.
        """
        with naming(self.image):
            _, height, width = self.image.open().shape
            to_pixels = geotransform(self.image.paths[0]) if self.geo else np.eye(2, 3)
        outlines = [_moved(outline, to_pixels) for outline in self.outlines]
        self._check_inside(outlines, height, width)

        def read(y0: int, y1: int) -> np.ndarray:
            mask = np.zeros((1, y1 - y0, width), self.dtype)
            for outline in outlines:
                for rings in outline.polygons:
                    _draw(mask[0], rings, y0, outline.value)
            return mask

        return ImageFile((1, height, width), np.dtype(self.dtype), read, by_region=True)

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


def geotransform(path: Path) -> np.ndarray:
    """From the coordinates on the map to pixels, with (0, 0) the upper left corner of the image.

    Source: OGC GeoTIFF standard 1.1 (OGC 19-008r4), 7.1.1 and B.6, the tags ModelPixelScale and ModelTiepoint, or
    ModelTransformation, and the key GTRasterType.

    Returns:
        (2, 3) float64: `pixel = transform[:, :2] @ (x, y) + transform[:, 2]`.

    Raises:
        UserError: The file is no TIFF with these tags.
        Exception: It cannot be read; see `naming`.
    """
    if path.suffix.lower() not in TIFF:
        raise UserError("`coordinates: geo` needs a GeoTIFF file; write them in pixels, or save the image as GeoTIFF")
    with tifffile.TiffFile(path) as tiff:
        found = {code: tiff.pages.first.tags.get(code) for code in (PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, KEYS)}
        tags = {code: tag.value for code, tag in found.items() if tag is not None}
    if TRANSFORMATION in tags:
        matrix = np.array(tags[TRANSFORMATION], np.float64).reshape(4, 4)
        to_map = matrix[[0, 0, 1, 1], [0, 1, 0, 1]].reshape(2, 2)
        origin = matrix[:2, 3]
    elif PIXEL_SCALE in tags and len(tags.get(TIEPOINTS, ())) == 6:
        i, j, _, x, y, _ = tags[TIEPOINTS]
        to_map = np.diag([tags[PIXEL_SCALE][0], -tags[PIXEL_SCALE][1]]).astype(np.float64)
        origin = np.array([x, y]) - to_map @ (i, j)
    else:
        raise UserError(
            "the TIFF file has no geotransform (ModelPixelScale with one ModelTiepoint, or ModelTransformation), which "
            "`coordinates: geo` needs"
        )
    keys = np.array(tags.get(KEYS, ()), np.int64)[4:].reshape(-1, 4)
    is_point = any(key == RASTER_TYPE and value == PIXEL_IS_POINT for key, _, _, value in keys)
    from_map = np.linalg.inv(to_map)
    # Where (0, 0) is a point, it is the centre of the first pixel.
    return np.column_stack([from_map, -from_map @ origin + 0.5 * is_point])


Features = list[tuple[int, dict[str, Any]]]  # with their places in the file, counted from 1


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
        _check_named([row for _, features in files.values() for row in map(_row, features)], options.label, names)
    for id_, (path, features) in files.items():
        try:
            if len(features) > MOST:
                raise UserError(f"{len(features)} features; only {MOST} can be told apart")
            drawn[id_] = [(_class_number(feature, options.label, config), _outline(*feature)) for feature in features]
        except UserError as error:
            problems.add(id_, f"{path}: {error}")
    problems.stop_if_any("The outlines do not fit the images:")
    samples = [sample for sample in samples if sample.id in drawn]
    # One dtype for all images.
    counts = _dtype([len(each) for each in drawn.values()])
    classes = _dtype([number for each in drawn.values() for number, _ in each])
    complete = []
    for sample in samples:
        path, image, geo = files[sample.id][0], sample.images["image"][0], options.coordinates == "geo"
        numbered = tuple(replace(o, value=i) for i, (_, o) in enumerate(drawn[sample.id], start=1))
        images = {**sample.images, "instances": [PolygonRef(path, "instances", image, geo, counts, numbered)]}
        if options.label:
            classed = tuple(replace(outline, value=number) for number, outline in drawn[sample.id])
            images["mask"] = [PolygonRef(path, "mask", image, geo, classes, classed)]
        complete.append(replace(sample, images=images))
    return complete


def _dtype(numbers: Sequence[int]) -> str:
    return "uint16" if max(numbers, default=0) > 255 else "uint8"


def _row(feature: tuple[int, dict[str, Any]]) -> dict[str, str]:
    return properties(feature[1])


def _of_one_file(
    ids: list[str], known: set[str], config: DatasetConfig, problems: Problems
) -> dict[str, tuple[Path, Features]]:
    """Id -> the file and the features of that image."""
    assert config.polygons
    path, column = Path(config.raw) / config.polygons.path, config.polygons.image
    if not path.is_file():
        raise UserError(f'the outlines "{path}" do not exist')
    features = list(enumerate(read_features(path), start=1))
    if column is None:
        if len(ids) != 1:
            raise UserError(
                f'polygons: "{config.polygons.path}" is one file for {len(ids)} images; say by `image` which property '
                "of a feature has the image's id, or give a pattern such as outlines/{id}.geojson"
            )
        return {ids[0]: (path, features)}
    rows = [_row(feature) for feature in features]
    _check_property(rows, column, path)
    found: dict[str, tuple[Path, Features]] = {id_: (path, []) for id_ in ids}
    stray: dict[str, list[int]] = {}
    index = IdIndex(known)
    for row, feature in zip(rows, features, strict=True):
        id_ = index.find(row.get(column, ""))
        if id_ in found:
            found[id_][1].append(feature)
        elif id_ not in known:
            stray.setdefault(id_, []).append(feature[0])
    problems.notes += index.describe_bridged(path)
    for id_, places in stray.items():
        told = ", ".join(map(str, places[:3])) + (" ..." if len(places) > 3 else "")
        problems.add(id_ or f"feature {told}", f'no image has this "{column}" (feature {told} of {path})')
    return found


def _of_many_files(
    ids: list[str], known: set[str], config: DatasetConfig, problems: Problems
) -> dict[str, tuple[Path, Features]]:
    """Id -> its file and all features in it."""
    assert config.polygons
    raw, values = Path(config.raw), field_values(config.all_patterns())
    pattern = Pattern.parse(config.polygons.path, GEOJSON, values)
    for text in list(config.image.values())[:1]:
        if set(Pattern.parse(text).fields) != set(pattern.fields):
            raise UserError(f'"{pattern.text}" and "{text}" must have the same fields, or files cannot be paired')
    matches, found = match(pattern, raw, files_below(raw), problems), dict[str, tuple[Path, Features]]()
    for id_ in ids:
        if id_ not in matches.files:
            problems.add(id_, f'no file for "{pattern.text}"')
            continue
        path = raw / matches.files[id_]
        try:
            found[id_] = path, list(enumerate(read_features(path), start=1))
        except UserError as error:
            problems.add(id_, str(error))
    for id_ in sorted(matches.files.keys() - known):
        problems.add(id_, f"{matches.files[id_]} has no image")
    return found


def _check_property(rows: list[dict[str, str]], name: str, path: Path | str) -> None:
    there = {column for row in rows for column in row}
    if rows and name not in there:
        raise UserError(f'{path}: no feature has the property "{name}".{nearest(name, there)}')


def _check_named(rows: list[dict[str, str]], label: str, names: list[str]) -> None:
    _check_property(rows, label, "polygons")
    texts = sorted({text for row in rows if (text := row.get(label, "")) and not text.isdecimal()})
    if texts and not names:
        raise UserError(
            f'polygons: the "{label}" of the features is a name; give all in `classes: {{mask: [background, ...]}}`:\n'
            f"{listed(texts)}"
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
