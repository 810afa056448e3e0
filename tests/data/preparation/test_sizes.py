"""What becomes of images of different sizes."""

import itertools

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from project.data.config import SizesConfig, SplitConfig
from project.data.preparation.sizes import tile_starts

SIZES = [(20, 32), (24, 24), (31, 20), (20, 20), (24, 24), (40, 27), (22, 35), (20, 33)]
ROLES = {"image": "in", "target": "out", "mask": "m", "instances": "o"}
PATTERNS = {"mask": "m/{id}.tif", "instances": "o/{id}.tif"}


def put_all(folder, sizes=SIZES) -> None:
    """An image of two channels, a target, a mask and objects of each size, all of noise."""
    for i, size in enumerate(sizes):
        folder.put(f"in/{i}.tif", shape=(2, *size))
        folder.put(f"out/{i}.tif", shape=size, dtype=np.float32)
        folder.put(f"m/{i}.tif", shape=size, dtype=np.uint8, low=0, high=3)
        folder.put(f"o/{i}.tif", shape=size, low=0, high=500)


def raw(folder, role: str, id_: str) -> np.ndarray:
    image = folder.images[f"{ROLES[role]}/{id_}.tif"]
    return image[None] if role == "target" else image


def check_windows(folder, readers, size) -> dict[str, list[tuple[int, int]]]:
    """Every array is the window of the raw one that its id tells; file -> upper left corners."""
    found, (h, w) = {}, size
    for reader in readers.values():
        for index, id_ in enumerate(reader.ids):
            name, _, place = id_.partition("@")
            y, x = (int(part) for part in place.rpartition("@")[2].removeprefix("y").split("x"))
            found.setdefault(name, []).append((y, x))
            for role in reader.shapes:
                expected = raw(folder, role, name)[..., y : y + h, x : x + w]
                np.testing.assert_array_equal(reader.read(role, index), expected)
                assert reader.dtypes[role] == expected.dtype
    return found


# --- which policy ---


def test_images_of_different_sizes_need_a_decision(folder):
    put_all(folder)
    message = folder.problem()
    assert "the images have 7 sizes" in message
    assert "\n  - 24 x 24: 2 images, such as 1\n" in message
    assert message.count(": 1 image, ") == 6
    assert "`{how: keep}`" in message
    assert "`{how: tile, size: 16}`" in message


def middle(array: np.ndarray, role: str) -> np.ndarray:
    y, x = (array.shape[-2] - 16) // 2, (array.shape[-1] - 20) // 2
    return array[..., y : y + 16, x : x + 20]


def padded(array: np.ndarray, role: str) -> np.ndarray:
    width = [(0, 0)] * (array.ndim - 2) + [(0, 40 - array.shape[-2]), (0, 36 - array.shape[-1])]
    return np.pad(array, width, constant_values=255) if role == "mask" else np.pad(array, width, mode="edge")


@pytest.mark.parametrize(
    ("sizes", "change"),
    [
        (SizesConfig("keep"), lambda array, role: array),
        (SizesConfig("crop", [16, 20]), middle),
        (SizesConfig("pad", [40, 36]), padded),
    ],
    ids=["keep", "crop", "pad"],
)
def test_what_becomes_of_the_pixels(folder, sizes, change):
    put_all(folder)
    readers = folder.prepare(sizes=sizes, ignore_index=255, **PATTERNS)
    folder.check(readers, change, **ROLES)
    for reader in readers.values():
        assert reader.dtypes == {"image": "u2", "target": "f4", "mask": "u1", "instances": "u2"}
        areas = [h * w for h, w in (SIZES[int(id_)] for id_ in reader.ids)]
        assert sizes.how == "crop" or reader.mask_counts.sum(axis=1).tolist() == areas


def test_resize_keeps_dtypes_and_classes(folder):
    put_all(folder)
    size = [12, 64]
    for reader in folder.prepare(sizes=SizesConfig("resize", size), **PATTERNS).values():
        for index, id_ in enumerate(reader.ids):
            for role in ROLES:
                before, after = raw(folder, role, id_), reader.read(role, index)
                assert (after.dtype, after.shape) == (before.dtype, (*before.shape[:-2], *size))
                assert before.min() <= after.min() <= after.max() <= before.max()
                if role in PATTERNS:
                    assert set(np.unique(after)) <= set(np.unique(before))
                else:
                    assert after.mean() == pytest.approx(before.mean(), rel=0.05)


# --- tiles ---


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 59))
def test_tiles_cover_a_line(length, tile, overlap):
    tile, overlap = min(tile, length), min(overlap, min(tile, length) - 1)
    found = tile_starts(length, tile, overlap)
    assert (found[0], found[-1]) == (0, length - tile)
    assert all(overlap <= tile - (b - a) < tile for a, b in itertools.pairwise(found))
    # One tile less could not cover the line.
    assert len(found) == 1 or (len(found) - 1) * (tile - overlap) + overlap < length


@pytest.mark.parametrize(("overlap", "compression"), [(0, "blosc2"), (5, "none")])
def test_tiles(folder, overlap, compression):
    put_all(folder)
    readers = folder.prepare(sizes=SizesConfig("tile", [10, 12], overlap), compression=compression, **PATTERNS)
    found = check_windows(folder, readers, (10, 12))
    assert sorted(found) == [str(i) for i in range(8)]
    for name, corners in found.items():
        covered = np.zeros(SIZES[int(name)], int)
        for y, x in corners:
            covered[y : y + 10, x : x + 12] += 1
        assert covered.min() == 1
        assert sorted(corners) == [
            (y, x)
            for y in tile_starts(covered.shape[0], 10, overlap)
            for x in tile_starts(covered.shape[1], 12, overlap)
        ]
    for reader in readers.values():
        assert reader.groups == [id_.partition("@")[0] for id_ in reader.ids]
        assert set(reader.shapes["image"]) == {(2, 10, 12)}
    groups = [group for reader in readers.values() for group in set(reader.groups)]
    assert len(groups) == len(set(groups)) == 8
    assert readers["val"].attributes["split"]["n"] == {name: len(reader) for name, reader in readers.items()}


@pytest.mark.parametrize(("axis", "gap"), [("x", 0), ("y", 3)])
def test_tiles_stay_in_the_region_of_their_split(folder, axis, gap):
    put_all(folder, [(60, 60), (90, 70)])
    split = SplitConfig(by="place", axis=axis, gap=gap, fractions={"train": 0.5, "val": 0.25, "test": 0.25})
    readers = folder.prepare(split=split, sizes=SizesConfig("tile", [10, 12], 2), **PATTERNS)
    check_windows(folder, readers, (10, 12))
    for name in "01":
        height, width = folder.images[f"out/{name}.tif"].shape
        owner = np.zeros((height, width), int)
        for number, reader in enumerate(readers.values(), 1):
            for id_, group in zip(reader.ids, reader.groups, strict=True):
                image, region, place = id_.split("@")
                if image != name:
                    continue
                assert group.partition("-")[0] == f"all frames@{region.partition('-')[0]}"  # of the shorter frame
                start, stop = map(int, region.removeprefix(axis).split("-"))
                y, x = map(int, place.removeprefix("y").split("x"))
                low, high = (x, x + 12) if axis == "x" else (y, y + 10)
                assert start <= low < high <= stop
                assert set(np.unique(owner[y : y + 10, x : x + 12])) <= {0, number}
                owner[y : y + 10, x : x + 12] = number
        assert (owner == 0).sum() == 2 * gap * (height if axis == "x" else width)


def test_a_picture_is_decoded_once_for_all_its_tiles(folder, monkeypatch):
    decoded, decode = [], imagecodecs.png_decode
    monkeypatch.setattr(imagecodecs, "png_decode", lambda data: decoded.append(len(data)) or decode(data))
    for role in ("in", "m"):
        (folder.raw / role).mkdir(parents=True)
        for i in range(4):
            pixels = folder.rng.integers(0, 3, (70, 64), np.uint8)
            Image.fromarray(pixels).save(folder.raw / role / f"{i}.png")
    options = {"image": {"a": "in/{id}.png"}, "target": {}, "mask": "m/{id}.png", "sizes": SizesConfig("tile", 16)}
    folder.prepare(**options)
    assert len(decoded) == 8


# --- what does not fit ---


@pytest.mark.parametrize(("how", "size", "too"), [("crop", 24, "few"), ("tile", [21, 5], "few"), ("pad", 32, "many")])
def test_all_images_that_do_not_fit_are_reported(folder, how, size, too):
    put_all(folder)
    h, w = (size, size) if isinstance(size, int) else size
    unfit = {
        str(i)
        for i, (height, width) in enumerate(SIZES)
        if (height < h or width < w if too == "few" else height > h or width > w)
    }
    assert 2 <= len(unfit) <= 6
    message = folder.problem(sizes=SizesConfig(how, size))
    assert message.startswith("Some samples or files cannot be used:\n")
    assert {line.split()[1].rstrip(":") for line in message.splitlines() if line.startswith("  - ")} == unfit
    height, width = SIZES[int(min(unfit))]
    assert f"{min(unfit)}: {height} x {width} pixels" in message

    split = SplitConfig(fractions={"train": 1.0})
    (reader,) = folder.prepare(sizes=SizesConfig(how, size), split=split, on_error="skip").values()
    assert set(reader.groups) == {str(i) for i in range(8)} - unfit
    assert {id_ for id_, _ in reader.attributes["skipped"]} == unfit
