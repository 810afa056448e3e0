"""Outlines in GeoJSON files, drawn as masks and instances."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from skimage.draw import polygon as pixels_inside

from project.data.config import DatasetConfig
from project.data.path_patterns import field_values
from project.data.raw import geojson
from project.data.raw.ids import IdIndex
from project.data.raw.lazy_image import Index, LazyImage, errors_mention
from project.data.raw.patterns import Pattern, check_same_fields, files_below, match_files
from project.data.raw.samples import ImageRef, Problems, Sample, first_ids
from project.errors import UserError, bullet_list, did_you_mean

MAX_NUMBER = 2**16 - 1  # in a mask
BAND_PIXELS = 2**24  # that are drawn at a time to see which features are visible
Ring = np.ndarray  # (N, 2) float64, x and y


@dataclass(frozen=True)
class Outline:
    """A feature as it is drawn."""

    number: int  # in its file, counted from 1; for messages
    value: int  # of its pixels
    polygons: tuple[tuple[Ring, ...], ...]  # of each polygon the outer ring and then the holes


@dataclass(frozen=True)
class PolygonRef:
    """Reference to the outlines of one image, which are drawn as a mask.

    x points to the right and y down, in pixels, and (0, 0) is the upper left corner of the image: the pixel in row i
    and column j has its center at (j + 0.5, i + 0.5). A pixel belongs to a polygon (or a hole) if its center is inside
    or on its line. Where features overlap, the later one is on top. Parts outside the image are cut off.
    """

    path: Path
    role: str  # "mask" or "instances"
    image: ImageRef  # gives the size
    dtype: str  # "uint8" or "uint16"
    # In the order of drawing; determined by the other attributes.
    outlines: tuple[Outline, ...] = field(repr=False, compare=False)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The outlines and the image."""
        return (self.path, *self.image.paths)

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> LazyImage:
        """The mask, (1, H, W), drawn when it is read."""
        with errors_mention(self.image):
            _, height, width = self.image.open().shape
        _check_inside(self.outlines, height, width)

        def read(index: Index) -> np.ndarray:
            rows, columns = index[1], index[2]
            assert isinstance(rows, slice)
            return _draw(self.outlines, *rows.indices(height)[:2], width, self.dtype)[None, :, columns]

        image = LazyImage((1, height, width), np.dtype(self.dtype), "CYX", read, (1,))
        return image.with_notes(_visibility_note(self.outlines, height, width) if self.role == "instances" else "")


def _check_inside(outlines: Sequence[Outline], height: int, width: int) -> None:
    for outline in outlines:
        (x0, y0), (x1, y1) = _limits(outline)
        if x1 < 0 or y1 < 0 or x0 > width or y0 > height:
            raise UserError(
                f"no part of feature {outline.number} (x {x0:g} to {x1:g}, y {y0:g} to {y1:g}) is in the image of "
                f"{width} x {height} pixels; are the coordinates pixels, x before y?"
            )


def _limits(outline: Outline) -> tuple[np.ndarray, np.ndarray]:
    """The corners (x, y) of the bounding box."""
    points = np.concatenate([rings[0] for rings in outline.polygons])
    return points.min(axis=0), points.max(axis=0)


def _draw(outlines: Iterable[Outline], y0: int, y1: int, width: int, dtype: str) -> np.ndarray:
    """Rows y0 to y1 of the mask, (y1 - y0, W)."""
    mask = np.zeros((y1 - y0, width), dtype)
    for value, rings in ((outline.value, rings) for outline in outlines for rings in outline.polygons):
        # In the coordinates of skimage the center of the first pixel is (0, 0).
        shifted = [ring - (0.5, 0.5 + y0) for ring in rings]
        size = width, y1 - y0
        left, top = np.clip(np.floor(shifted[0].min(axis=0)), 0, size).astype(int)
        right, bottom = np.clip(np.ceil(shifted[0].max(axis=0)) + 1, 0, size).astype(int)
        part = mask[top:bottom, left:right]
        if part.size:
            inside = np.zeros(part.shape, bool)
            for number, ring in enumerate(shifted):
                inside[pixels_inside(ring[:, 1] - top, ring[:, 0] - left, part.shape)] = number == 0
            part[inside] = value
    return mask


def _visibility_note(outlines: Sequence[Outline], height: int, width: int) -> str:
    """Note on features of which no pixel is visible; "" where all are, an error where none is."""
    numbered = [replace(outline, value=i) for i, outline in enumerate(outlines, start=1)]
    visible, rows = set[int](), max(BAND_PIXELS // width, 1)
    for y0 in range(0, height, rows):
        visible |= set(np.unique(_draw(numbered, y0, min(y0 + rows, height), width, "uint16")).tolist())
    hidden = []
    for outline in (outline for outline in numbered if outline.value not in visible):
        (x0, y0), (x1, y1) = _limits(outline)
        hidden.append(f"feature {outline.number} ({x1 - x0:.2g} x {y1 - y0:.2g} pixels)")
    if hidden and not visible - {0}:
        raise UserError(f"no feature covers a pixel center: {hidden[0]}; are the coordinates pixels of this image?")
    shown = f"shows {len(outlines) - len(hidden)} of {len(outlines)} features"
    return f"{shown}; others cover no pixel center or are below later ones: {first_ids(hidden)}" if hidden else ""


@dataclass(frozen=True)
class _Feature:
    number: int  # in the file, counted from 1
    content: dict[str, Any]
    row: dict[str, str]  # its properties


Features = tuple[Path, list[_Feature]]  # of one image, and their file


def add_polygons(samples: list[Sample], config: DatasetConfig, problems: Problems) -> list[Sample]:
    """The samples with `instances` and, where features have a class, `mask`, if there are outlines.

    Objects are counted from 1 in the order of the file. A sample without features has empty masks. Missing or wrong
    outlines, and features of no sample, are problems.
    """
    if not (options := config.polygons):
        return samples
    ids = [sample.id for sample in samples]
    find = _features_per_file if "{" in options.path else _features_of_one_file
    features = find(ids, set(ids) | problems.known, config, problems)
    if options.label:
        rows = [feature.row for _, file_features in features.values() for feature in file_features]
        _check_property(rows, options.label, "polygons")
        texts = sorted({text for row in rows if (text := row.get(options.label, "")) and not text.isdecimal()})
        if texts and not config.class_names("mask"):
            raise UserError(
                f'polygons: the "{options.label}" of the features is a name; list all in `classes: {{mask: '
                f"[background, ...]}}`:\n{bullet_list(texts)}"
            )
    outlines = dict[str, list[Outline]]()  # with the value of the class
    for id_, (path, file_features) in features.items():
        try:
            if (n := len(file_features)) > MAX_NUMBER:
                raise UserError(f"{n} features; at most {MAX_NUMBER} are possible")
            outlines[id_] = [_outline(feature, _class_number(feature, config)) for feature in file_features]
        except UserError as error:
            problems.add(id_, f"{path}: {error}")
    problems.raise_or_skip("The outlines do not fit the images:")
    # One dtype for all images.
    number_dtype = _dtype(len(image_outlines) for image_outlines in outlines.values())
    class_dtype = _dtype(outline.value for image_outlines in outlines.values() for outline in image_outlines)
    complete = []
    for sample in (sample for sample in samples if sample.id in outlines):
        path, image, classes = features[sample.id][0], sample.images["image"][0], tuple(outlines[sample.id])
        numbers = tuple(replace(outline, value=i) for i, outline in enumerate(classes, start=1))
        images = {**sample.images, "instances": [PolygonRef(path, "instances", image, number_dtype, numbers)]}
        if options.label:
            images["mask"] = [PolygonRef(path, "mask", image, class_dtype, classes)]
        complete.append(replace(sample, images=images))
    return complete


def _dtype(numbers: Iterable[int]) -> str:
    return "uint16" if max(numbers, default=0) > 255 else "uint8"


def _read_features(path: Path) -> list[_Feature]:
    return [_Feature(i, f, geojson.properties(f)) for i, f in enumerate(geojson.read_geojson(path), start=1)]


def _features_of_one_file(
    ids: list[str], known: set[str], config: DatasetConfig, problems: Problems
) -> dict[str, Features]:
    """Id -> the features of that image, where one file serves all."""
    assert config.polygons
    path, column = Path(config.raw) / config.polygons.path, config.polygons.image
    if not path.is_file():
        raise UserError(f'the outlines "{path}" do not exist')
    all_features = _read_features(path)
    if column is None:
        if len(ids) != 1:
            raise UserError(
                f'polygons: "{config.polygons.path}" is one file for {len(ids)} images; name by `image` the property '
                "with the image's id, or give a pattern such as outlines/{id}.geojson"
            )
        return {ids[0]: (path, all_features)}
    _check_property([feature.row for feature in all_features], column, path)
    features: dict[str, Features] = {id_: (path, []) for id_ in ids}
    unknown: dict[str, list[int]] = {}
    index = IdIndex(known)
    for feature in all_features:
        id_ = index.find(feature.row.get(column, ""))
        if id_ in features:
            features[id_][1].append(feature)
        elif id_ not in known:
            unknown.setdefault(id_, []).append(feature.number)
    problems.notes += index.describe_bridged(path)
    for id_, numbers in unknown.items():
        listed = first_ids([str(number) for number in numbers])
        problems.add(id_ or f"feature {listed}", f'no image has this "{column}" (feature {listed} of {path})')
    return features


def _features_per_file(
    ids: list[str], known: set[str], config: DatasetConfig, problems: Problems
) -> dict[str, Features]:
    """Id -> all features of its file, where each image has one."""
    assert config.polygons
    raw, values = Path(config.raw), field_values(config.all_patterns())
    pattern = Pattern.parse(config.polygons.path, geojson.SUFFIXES, values)
    for text in list(config.image.values())[:1]:
        check_same_fields(Pattern.parse(text), pattern)
    matches, features = match_files(pattern, raw, files_below(raw), problems), dict[str, Features]()
    for id_ in ids:
        if id_ not in matches.files:
            problems.add(id_, f'no file for "{pattern.text}"')
            continue
        path = raw / matches.files[id_]
        try:
            features[id_] = path, _read_features(path)
        except UserError as error:
            problems.add(id_, str(error))
    for id_ in sorted(matches.files.keys() - known):
        problems.add(id_, f"{matches.files[id_]} has no image")
    return features


def _check_property(rows: list[dict[str, str]], name: str, path: Path | str) -> None:
    columns = {column for row in rows for column in row}
    if rows and name not in columns:
        raise UserError(f'{path}: no feature has the property "{name}".{did_you_mean(name, columns)}')


def _class_number(feature: _Feature, config: DatasetConfig) -> int:
    assert config.polygons
    if (label := config.polygons.label) is None:
        return 1
    text, names = feature.row.get(label, ""), config.class_names("mask")
    if text in names:
        return names.index(text)
    number = int(text) if text.isdecimal() else MAX_NUMBER + 1
    if number == config.ignore_index or number < (len(names) or MAX_NUMBER + 1):
        return number
    subject = f'the "{label}" of feature {feature.number} is "{text}"'
    subject = subject if text else f'feature {feature.number} has no "{label}"'
    raise UserError(f"{subject}; the classes are {', '.join(names) if names else f'numbers up to {MAX_NUMBER}'}")


def _outline(feature: _Feature, value: int) -> Outline:
    try:
        return Outline(feature.number, value, _polygons(feature.content["geometry"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the geometry of feature {feature.number} cannot be read") from error
    except UserError as error:
        raise UserError(f"feature {feature.number} {error}") from error


def _polygons(geometry: dict[str, Any] | None) -> tuple[tuple[Ring, ...], ...]:
    if geometry is None:
        raise UserError("has no geometry")
    kind = geometry["type"]
    if kind == "GeometryCollection":
        return tuple(polygon for part in geometry["geometries"] for polygon in _polygons(part))
    if kind not in ("Polygon", "MultiPolygon"):
        raise UserError(f"is a {kind}; only Polygon and MultiPolygon can be drawn")
    coordinates = geometry["coordinates"] if kind == "MultiPolygon" else [geometry["coordinates"]]
    if not coordinates or not all(coordinates):
        raise UserError("is empty")
    return tuple(tuple(_ring(points) for points in rings) for rings in coordinates)


def _ring(points: list[list[float]]) -> Ring:
    ring = np.array([point[:2] for point in points], np.float64).reshape(-1, 2)
    if len(ring) < 3 or not np.isfinite(ring).all():
        raise UserError("has an invalid ring: at least 3 finite points are needed")
    return ring
