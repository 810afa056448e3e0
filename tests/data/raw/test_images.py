"""Images as (C, H, W): dtypes, color conversion, channels, functions of the user."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from raw_images import GRAY8, GRAY16, RNG, STACK16, check, check_image, open_image, read

from project.data.raw.images import FileRef, FunctionImage, convert_colors
from project.data.raw.lazy_image import EXACT_IN_FLOAT32
from project.errors import UserError


@pytest.mark.parametrize(
    ("dtype", "final"),
    [
        (np.bool_, np.uint8),
        (np.uint8, np.uint8),
        (np.uint16, np.uint16),
        (np.int16, np.float32),
        (np.uint32, np.float32),
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
