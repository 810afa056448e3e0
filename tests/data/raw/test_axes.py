"""Axes of a file: names, channels, positions, maxima and means."""

from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from raw_images import GRAY8, RGB8, RNG, STACK16, check, check_image, open_image

from project.data.raw.images import FileRef
from project.errors import UserError

HYPER = RNG.integers(0, 1000, (4, 3, 2, 7, 9), np.uint16)  # TZCYX
WRITERS: dict[str, dict[str, Any]] = {
    "imagej": {"imagej": True, "metadata": {"axes": "TZCYX"}},
    "ome": {"ome": True, "metadata": {"axes": "TZCYX"}},
    "ome-compressed": {"ome": True, "metadata": {"axes": "TZCYX"}, "compression": "zlib", "rowsperstrip": 3},
    "shaped": {"metadata": {"axes": "TZCYX"}},
}


@pytest.mark.parametrize(("n", "pages"), [(2, None), (3, (("Q", 0),)), (31, None)])
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


@pytest.mark.parametrize("dtype", [np.bool_, np.int16, np.float32, np.int32])
def test_means_and_maxima_of_other_dtypes(tmp_path, dtype):
    stack = (RNG.integers(-50, 50, (5, 7, 9)) > 0 if dtype == np.bool_ else RNG.integers(-50, 50, (5, 7, 9))).astype(
        dtype
    )
    np.save(tmp_path / "a.npy", stack)
    final = np.uint8 if dtype == np.bool_ else np.float32
    mean = stack.mean(0, dtype=np.float64, keepdims=True)
    mean = mean if dtype == np.float32 else np.rint(mean)
    check(tmp_path / "a.npy", mean.astype(final), axes="ZYX", pages=(("Z", "mean"),))
    check(tmp_path / "a.npy", stack.max(0, keepdims=True).astype(final), axes="ZYX", pages=(("Z", "max"),))


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        (None, r"T: 4, Z: 3, C: 2: set .*`pages: \{T: samples, Z: max, C: channels\}`"),
        ((("T", 0),), r"use of Z and C, such as `pages: \{T: 0, Z: max, C: channels\}`"),
        ((("P", 1), ("T", 0)), r"1 is no position on the axis P \(length 1\) of T: 4, Z: 3, C: 2"),
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
