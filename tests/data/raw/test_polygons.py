"""Outlines drawn as masks: pixels, images, classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import raw_folders
import tifffile
from raw_folders import read

from project.data.config import PolygonConfig
from project.data.raw.samples import Problems
from project.errors import UserError

HEIGHT, WIDTH = 8, 10


def image(path: Path, shape: tuple[int, ...] = (HEIGHT, WIDTH), **options) -> None:
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, np.zeros(shape, np.uint8), photometric="minisblack", **options)


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def polygon(*rings: list, type_: str = "Polygon", **properties) -> dict:
    geometry = {"type": type_, "coordinates": list(rings)}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def write(path: Path, *features: dict, **members: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **members}))


def find(raw: Path, path: str = "{id}.geojson", problems: Problems | None = None, label=None, **options):
    return raw_folders.find(raw, "{id}.tif", problems, polygons=PolygonConfig(path, label=label), **options)


def problem(raw: Path, **options) -> str:
    """What is wrong with the outlines, or with drawing them."""
    with pytest.raises(UserError) as caught:
        [read(sample, role) for sample in find(raw, **options) for role in sample.roles[1:]]
    return str(caught.value)


def drawn(raw: Path, *features: dict, role: str = "instances", **options) -> np.ndarray:
    image(raw / "a.tif")
    write(raw / "a.geojson", *features)
    (sample,) = find(raw, **options)
    return read(sample, role)


# --- which pixels ---


def test_a_pixel_is_inside_if_its_center_is(raw):
    mask = drawn(raw, polygon(box(2, 1, 5, 3)))
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[1:3, 2:5] = 1
    np.testing.assert_array_equal(mask, expected)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(drawn(raw, polygon(box(2.4, 1.4, 4.6, 2.6))), expected)
    expected[1:3, 2] = expected[2, :] = 0
    np.testing.assert_array_equal(drawn(raw, polygon(box(2.6, 1.4, 4.6, 2.4))), expected)


def test_holes_are_left_out_and_several_polygons_are_one_object(raw):
    parts = [[box(0, 0, 4, 8), box(1, 1, 3, 3)], [box(6, 0, 7, 1)]]
    mask = drawn(raw, polygon(*parts, type_="MultiPolygon"), polygon(box(1, 1, 2, 2)))
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:, :4] = expected[0, 6] = 1
    expected[1:3, 1:3] = 0
    expected[1, 1] = 2
    np.testing.assert_array_equal(mask, expected)


def test_parts_outside_the_image_is_cut_off(raw):
    mask = drawn(raw, polygon(box(-5, -5, 2, 2)), polygon(box(8, 6, 1e6, 1e6)), polygon(box(3, -90, 4, 90)))
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:2, :2], expected[6:, 8:], expected[:, 3] = 1, 2, 3
    np.testing.assert_array_equal(mask, expected)
    # No corner of this one lies in the image.
    assert drawn(raw, polygon(box(-1, -1, 11, 9))).all()


def test_features_outside_the_image(raw):
    image(raw / "a.tif")
    write(raw / "a.geojson", polygon(box(1, 1, 2, 2)), polygon(box(1, -9, 2, -8)))
    message = problem(raw)
    assert "a.geojson: no part of feature 2 (x " in message
    assert "is in the image of 10 x 8 pixels; are the coordinates pixels" in message


# --- classes ---


def test_classes_by_name_and_by_number(raw):
    features = [polygon(box(i, 0, i + 1, 8), kind=kind) for i, kind in enumerate(["tumour", "2", 1, "background", 255])]
    options = {"label": "kind", "classes": ["background", "stroma", "tumour"], "ignore_index": 255}
    mask = drawn(raw, *features, role="mask", **options)
    assert mask[0].tolist() == [2, 2, 1, 0, 255, 0, 0, 0, 0, 0]
    (sample,) = find(raw, **options)
    assert sample.roles == ["image", "mask", "instances"]
    assert read(sample, "instances")[0].tolist() == [1, 2, 3, 4, 5, 0, 0, 0, 0, 0]


def test_numbers_need_no_names(raw):
    features = [polygon(box(i, 0, i + 1, 8), classification={"name": name}) for i, name in enumerate(["3", 300])]
    mask = drawn(raw, *features, role="mask", label="classification.name")
    assert mask.dtype == np.uint16
    assert mask[0, :3].tolist() == [3, 300, 0]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("other", 'the "kind" of feature 2 is "other"; the classes are background, x, y'),
        (3, 'the "kind" of feature 2 is "3"'),
        (None, 'feature 2 has no property "kind"'),
    ],
)
def test_unknown_classes(raw, kind, message):
    image(raw / "a.tif")
    write(raw / "a.geojson", polygon(box(0, 0, 1, 8), kind=1), polygon(box(0, 0, 1, 8), kind=kind))
    assert f"a.geojson: {message}" in problem(raw, label="kind", classes=["background", "x", "y"])
    assert 'has no property "kinds". Did you mean "kind"?' in problem(raw, label="kinds")
    if kind == "other":
        assert 'the "kind" of feature 2 is "other"; name all in `classes' in problem(raw, label="kind")


# --- which image ---


def test_a_file_for_each_image(raw):
    for day in ("d1", "d2"):
        image(raw / day / "a.tif")
        write(raw / f"a_{day}.json", polygon(box(int(day[1]), 0, 9, 8)))
    options = {"image": "{day}/{id}.tif", "polygons": PolygonConfig("{id}_{day}.json")}
    samples = raw_folders.find(raw, **options)
    assert [(s.id, read(s, "instances")[0].sum()) for s in samples] == [("d1/a", 8), ("d2/a", 7)]
    (raw / "a_d1.json").unlink()
    write(raw / "b_d7.json")
    write(raw / "a_d2.json")
    message = raw_folders.problem(raw, **options)
    assert '- d1/a: no instances file for "{id}_{day}.json"\n' in message
    assert '- d7/b: b_d7.json has no partner for "{day}/{id}.tif"\n' in message
    (sample,), skipped = raw_folders.skipping(raw, **options)
    assert not read(sample, "instances").any()  # a file without features is an image without objects
    assert [which for which, _ in skipped] == ["d1/a", "d7/b"]
    assert "must have the same fields" in raw_folders.problem(raw, **options | {"polygons": PolygonConfig("{id}.json")})


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (polygon() | {"geometry": {"type": "Point", "coordinates": [1, 2]}}, "feature 2 is a Point"),
        (polygon() | {"geometry": None}, "feature 2 is a feature without geometry"),
        (polygon(), "feature 2 is not made of rings"),
        (polygon(box(0, 0, 1, 1)[:2]), "feature 2 is not made of rings"),
        (polygon([[0, 0], [1, float("nan")], [1, 1]]), "feature 2 is not made of rings"),
        (polygon([["x", 0], [1, 0], [1, 1]]), "feature 2 is not made of rings"),
    ],
)
def test_features_that_are_not_polygons(raw, feature, message):
    image(raw / "a.tif")
    write(raw / "a.geojson", polygon(box(0, 0, 1, 1)), feature)
    assert f"{raw / 'a.geojson'}: {message}" in problem(raw)


def test_outlines_that_cannot_be_read_are_named(raw):
    image(raw / "a.tif")
    (raw / "a.geojson").write_text("{")
    assert "a.geojson: cannot be read" in problem(raw)


def note(raw: Path, **options) -> str:
    (sample,) = find(raw, **options)
    return "; ".join(sample.images["instances"][0].open().notes)


def test_features_without_a_pixel_of_their_own_are_noted(raw):
    image(raw / "a.tif")
    hidden = [polygon(box(7.1, 7.1, 7.4, 7.4)), polygon(box(3, 3, 5, 5)), polygon(box(10, 2, 12, 4))]
    write(raw / "a.geojson", polygon(box(0, 0, 2, 2)), *hidden, polygon(box(2, 2, 6, 6)))
    assert "shows 2 of 5 features" in note(raw)
    assert "feature 2, feature 3, feature 4" in note(raw)
    write(raw / "a.geojson")
    assert note(raw) == ""


def test_outlines_of_which_none_covers_a_pixel_are_refused(raw):
    image(raw / "a.tif")
    write(raw / "a.geojson", polygon(box(8.54, 7.37, 8.55, 7.38)))
    assert "no feature covers a pixel center" in problem(raw)


def named(name: object) -> dict:
    return {"type": "name", "properties": {"name": name}}


CRS = [named("EPSG:32632"), named(4326), {"type": "EPSG", "properties": {"code": 4326}}, "WGS 84"]


@pytest.mark.parametrize("crs", CRS)
def test_outlines_of_a_coordinate_system_are_not_in_pixels(raw, crs):
    image(raw / "a.tif")
    outline = polygon(box(0, 0, 4, 4))
    write(raw / "a.geojson", outline, crs=crs)
    assert "not in pixels of the image" in problem(raw)
    (raw / "a.geojson").write_text(json.dumps([outline | {"crs": crs}]))
    assert "not in pixels of the image" in problem(raw)


@pytest.mark.parametrize("crs", [None, named("pixel"), named(""), named(None)])
def test_outlines_without_a_coordinate_system_are_in_pixels(raw, crs):
    image(raw / "a.tif")
    write(raw / "a.geojson", polygon(box(0, 0, 4, 4)), crs=crs)
    assert read(find(raw)[0], "instances")[:4, :4].all()
