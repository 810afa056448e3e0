"""Images as (C, H, W): dtypes, color conversion, channels, functions of the user; axes and what becomes of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from raw_images import GRAY8, GRAY16, RGB8, RNG, STACK16, check, check_image, open_image, read

from project.data.raw.images import FileRef, FunctionImage, convert_colors
from project.data.raw.lazy_image import EXACT_IN_FLOAT32
from project.errors import UserError


@pytest.mark.parametrize(
    ("dtype", "final"),
    [
        (np.bool_, np.uint8),
        (np.uint16, np.uint16),
        (np.int16, np.float32),
        (np.int64, np.float32),
        (np.float16, np.float32),
        (np.float64, np.float32),
    ],
)
def test_dtypes(tmp_path, dtype, final):
    array = np.array([[[0, 1, 1], [1, 0, 0]]]) if dtype == np.bool_ else np.array([[[0, 1, 2], [100, 90, 7]]])
    array = array.astype(dtype)
    if array.dtype.kind in "if":
        array[0, 0, 0] = -5
    np.save(tmp_path / "a.npy", array)
    check(tmp_path / "a.npy", array.astype(final))


def test_integers_up_to_the_limit_of_float32(tmp_path):
    for value in (EXACT_IN_FLOAT32, -EXACT_IN_FLOAT32):
        np.save(tmp_path / "a.npy", np.full((1, 2, 2), value))
        check(tmp_path / "a.npy", np.full((1, 2, 2), value, np.float32))
    for value in (EXACT_IN_FLOAT32 + 1, -EXACT_IN_FLOAT32 - 1, np.iinfo(np.int64).min):
        np.save(tmp_path / "a.npy", np.full((1, 2, 2), value))
        with pytest.raises(UserError, match="cannot be kept exactly"):
            read(open_image(tmp_path / "a.npy"))


def check_converted(path: Path, rgb: np.ndarray) -> None:
    """`rgb` is (H, W, 3)."""
    mean = np.rint(rgb.astype(np.float64).mean(axis=2)).astype(rgb.dtype)[None]
    for kind, expected in (("rgb", rgb.transpose(2, 0, 1)), ("grey", mean)):
        file = convert_colors(open_image(path), kind)
        check_image(file, expected)
        check_image(FileRef(path, convert=kind).open(), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pictures_of_every_kind_become_one_kind(tmp_path, mode):
    values = RNG.integers(0, 256, (7, 9, len(mode) if mode != "L" else 1), np.uint8)
    Image.fromarray(values[..., 0] if mode == "L" else values, mode).save(tmp_path / "a.png")
    check_converted(tmp_path / "a.png", values[..., :3] if len(mode) > 2 else values[..., :1].repeat(3, axis=2))


def test_a_channel_that_is_not_there(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK16, photometric="minisblack")
    for channel in (3, -1):
        with pytest.raises(UserError, match=f"there is no channel {channel}: the file has 3"):
            FileRef(tmp_path / "a.tif", channel=channel).open()
    tifffile.imwrite(tmp_path / "a.tif", GRAY16)
    check_image(FileRef(tmp_path / "a.tif", channel=0).open(), GRAY16[None])


def test_image_of_a_function():
    check_image(FunctionImage(lambda: GRAY16).open(), GRAY16[None])
    check_image(FunctionImage(lambda: STACK16.astype(">i4")).open(), STACK16.astype(np.float32))
    assert not FunctionImage(lambda: GRAY16).open().reads_rows


def test_a_function_that_returns_no_image():
    for array in (np.zeros(5), np.zeros((2, 3, 4, 5)), np.zeros((0, 5))):
        with pytest.raises(UserError, match="is not an image"):
            FunctionImage(lambda array=array: array).open()
    arrays = iter([GRAY8, GRAY16])
    image = FunctionImage(lambda: next(arrays)).open()
    with pytest.raises(UserError, match=r"promises uint8 .* holds uint16"):
        read(image)


# Axes -----------------------------------------------------------------------------------------------------------------

HYPER = RNG.integers(0, 1000, (4, 3, 2, 7, 9), np.uint16)  # TZCYX
WRITERS: dict[str, dict[str, Any]] = {
    "imagej": {"imagej": True, "metadata": {"axes": "TZCYX"}},
    "ome": {"ome": True, "metadata": {"axes": "TZCYX"}},
    "ome-compressed": {"ome": True, "metadata": {"axes": "TZCYX"}, "compression": "zlib", "rowsperstrip": 3},
    "shaped": {"metadata": {"axes": "TZCYX"}},
}


@pytest.mark.parametrize(("n", "pages"), [(3, (("Q", 0),)), (31, None)])
def test_channels_last_are_not_taken_for_rows(tmp_path, n, pages):
    array = RNG.integers(0, 256, (48, 48, n), np.uint8)
    np.save(tmp_path / "a.npy", array)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
    for path in (tmp_path / "a.npy", tmp_path / "a.tif"):
        with pytest.raises(UserError, match="axes: YXC"):
            open_image(path, pages=pages)
        check(path, array.transpose(2, 0, 1), axes="YXC")
    tifffile.imwrite(tmp_path / "b.tif", array, photometric="minisblack", planarconfig="contig")  # it says so itself
    check(tmp_path / "b.tif", array.transpose(2, 0, 1))


def test_wrong_axes(tmp_path):
    np.save(tmp_path / "a.npy", STACK16)
    with pytest.raises(UserError, match="set `axes`"):
        open_image(tmp_path / "a.npy", axes="TCYX")
    with pytest.raises(UserError, match="with Y and X; set `axes`"):
        open_image(tmp_path / "a.npy", axes="CZX")


@pytest.mark.parametrize("writer", WRITERS)
def test_further_axes(tmp_path, writer):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, HYPER, photometric="minisblack", **WRITERS[writer])
    assert FileRef(path).axis_sizes() == {"T": 4, "Z": 3, "C": 2}
    for t in (0, 3):
        check(path, HYPER[t].max(0), pages=(("T", t), ("C", "channels"), ("Z", "max")))
    check(path, HYPER[1, :, 1], pages=(("T", 1), ("Z", "channels"), ("C", 1)))
    check(path, HYPER[1, 2, 1][None], pages=(("T", 1), ("Z", 2), ("C", 1)))
    mean = np.rint(HYPER.mean((0, 1), np.float64)).astype(np.uint16)
    check(path, mean, pages=(("T", "mean"), ("Z", "mean"), ("C", "channels")))
    mean_of_max = np.rint(HYPER.max(1).mean(0, np.float64)).astype(np.uint16)
    check(path, mean_of_max, pages=(("Z", "max"), ("T", "mean"), ("C", "channels")))
    max_of_mean = np.rint(HYPER.mean(0, np.float64).max(0)).astype(np.uint16)
    check(path, max_of_mean, pages=(("T", "mean"), ("Z", "max"), ("C", "channels")))
    assert not np.array_equal(mean_of_max, max_of_mean)
    channel = FileRef(path, pages=(("T", 2), ("Z", "max"), ("C", "channels")), channel=1)
    check_image(channel.open(), HYPER[2].max(0)[1:])


def test_other_orders_of_axes(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", HYPER[:, 0], ome=True, photometric="minisblack", metadata={"axes": "TCYX"})
    check(tmp_path / "a.tif", HYPER[2, 0], pages=(("C", "channels"), ("T", 2)))
    check(tmp_path / "a.tif", HYPER[:, 0, 1], pages=(("C", 1), ("T", "channels")))
    np.save(tmp_path / "a.npy", HYPER.transpose(0, 3, 4, 2, 1))
    check(tmp_path / "a.npy", HYPER[2].max(0), axes="TYXCZ", pages=(("T", 2), ("C", "channels"), ("Z", "max")))
    assert FileRef(tmp_path / "a.npy", "TYXCZ").axis_sizes() == {"T": 4, "C": 2, "Z": 3}


def test_colors_are_channels(tmp_path):
    series = RNG.integers(0, 256, (4, 7, 9, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", series, photometric="rgb", metadata={"axes": "TYXS"})
    assert FileRef(tmp_path / "a.tif").axis_sizes() == {"T": 4, "C": 3}
    check(tmp_path / "a.tif", series[1].transpose(2, 0, 1), pages=(("T", 1), ("C", "channels")))
    tifffile.imwrite(tmp_path / "a.tif", series, photometric="rgb", ome=True, metadata={"axes": "TYXS"})  # says C: 1
    check(tmp_path / "a.tif", series[1, ..., 2][None], pages=(("T", 1), ("C", 2)))
    Image.fromarray(RGB8).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "rgb.tif", RGB8, photometric="rgb")
    tifffile.imwrite(tmp_path / "grey.tif", GRAY8, imagej=True)
    assert FileRef(tmp_path / "a.png").axis_sizes() == FileRef(tmp_path / "rgb.tif").axis_sizes() == {"C": 3}
    assert FileRef(tmp_path / "grey.tif").axis_sizes() == {}


@pytest.mark.parametrize(("dtype", "final"), [("bool", "uint8"), ("int16", "float32"), ("float32", "float32")])
def test_means_and_maxima_of_other_dtypes(tmp_path, dtype, final):
    stack = (RNG.integers(-50, 50, (5, 7, 9)) * RNG.integers(0, 2, (5, 7, 9))).astype(dtype)
    np.save(tmp_path / "a.npy", stack)
    mean = stack.mean(0, dtype=np.float64, keepdims=True)
    mean = mean if dtype == "float32" else np.rint(mean)
    check(tmp_path / "a.npy", mean.astype(final), axes="ZYX", pages=(("Z", "mean"),))
    check(tmp_path / "a.npy", stack.max(0, keepdims=True).astype(final), axes="ZYX", pages=(("Z", "max"),))


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        (None, r"T: 4, Z: 3, C: 2: set .*`pages: \{T: samples, Z: max, C: channels\}`"),
        ((("T", 0),), r"use of Z and C, such as `pages: \{T: 0, Z: max, C: channels\}`"),
        ((("P", 1), ("T", 0)), r"1 is no position on the axis P \(length 1\) of T: 4, Z: 3, C: 2"),
        ((("T", -1), ("Z", "max"), ("C", 0)), "-1 is no position on the axis T"),
        ((("T", 0), ("Z", "median"), ("C", 0)), "median is no position on the axis Z"),
    ],
)
def test_pages_that_do_not_fit(tmp_path, pages, message):
    tifffile.imwrite(tmp_path / "a.tif", HYPER, imagej=True, metadata={"axes": "TZCYX"})
    with pytest.raises(UserError, match=message):
        open_image(tmp_path / "a.tif", pages=pages)


def test_axes_without_names(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", HYPER[0], photometric="minisblack")
    for call in (open_image, lambda path: FileRef(path).axis_sizes()):
        with pytest.raises(UserError, match="set `axes`"):
            call(tmp_path / "a.tif")
    check(tmp_path / "a.tif", HYPER[0].max(0), axes="ZCYX", pages=(("Z", "max"), ("C", "channels")))
