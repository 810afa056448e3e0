"""Declarations of a file about its values are applied, refused or noted, by every reader."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image
from raw_images import GRAY8, GRAY16, RGB8, RNG, note, open_image

from project.data.preparation.pixels import read_role, role_notes
from project.data.raw.images import FileRef, convert_colors
from project.data.raw.samples import Sample
from project.errors import UserError

GDAL_NODATA, SUBFILE, UNASSOCIATED = 42113, "subfiletype", "unassalpha"
COLORS = RNG.integers(0, 256, (256, 3), np.uint8)

packed_bits = pytest.mark.skipif(
    int(tifffile.__version__.split(".")[0]) < 2026,
    reason="tifffile before 2026 cannot decode CCITT and packed integers",
)


def pixels(path: Path, **options: Any) -> np.ndarray:
    file = FileRef(path, **options).open()
    array = file.rows(0, file.shape[1])
    assert array.dtype == file.dtype
    np.testing.assert_array_equal(file.rows(2, 5), array[:, 2:5])
    return array


def read(path: Path, role: str, **options: Any) -> np.ndarray:
    return read_role(Sample("a", {role: [FileRef(path, **options)]}), role, lambda ref: ref.open())


# Colors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "options"),
    [(GRAY8, {}), (GRAY16, {"byteorder": ">"}), (GRAY16, {"tile": (16, 16), "compression": "zlib"})],
)
def test_white_is_zero_is_inverted(tmp_path, array, options):
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite", **options)
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif")[0], np.iinfo(array.dtype).max - array)
    assert "its values are inverted, so that 0 is black" in note(open_image(tmp_path / "a.tif"))
    with pytest.raises(UserError, match=r"a\.tif: the file says that 0 is white"):
        read(tmp_path / "a.tif", "mask")


@packed_bits
def test_white_is_zero_of_fewer_bits_than_the_dtype(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GRAY16 >> 4, photometric="miniswhite", bitspersample=12)
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif")[0], 4095 - (GRAY16 >> 4))


@packed_bits
def test_bilevel_masks_are_what_viewers_show_but_boolean_arrays_of_tifffile_stay(tmp_path):
    truth = GRAY8 > 128
    for photometric in (0, 1):
        Image.fromarray(truth).save(tmp_path / "a.tif", compression="group4", tiffinfo={262: photometric})
        seen = np.asarray(Image.open(tmp_path / "a.tif"))
        np.testing.assert_array_equal(read(tmp_path / "a.tif", "mask"), seen)
        assert ("0 as white" in note(open_image(tmp_path / "a.tif"))) == (photometric == 0)
    tifffile.imwrite(tmp_path / "b.tif", truth)
    np.testing.assert_array_equal(read(tmp_path / "b.tif", "mask"), truth)
    assert "as tifffile writes it for every boolean array" in note(open_image(tmp_path / "b.tif"))


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr"])
def test_other_color_spaces_are_refused_in_tiff_as_in_jpeg(tmp_path, mode):
    Image.fromarray(RGB8).convert(mode).save(tmp_path / "a.tif")
    for convert in (None, "rgb"):
        with pytest.raises(UserError, match=r'pictures of mode ".*" are not supported; save it as gray or RGB'):
            FileRef(tmp_path / "a.tif", convert=convert).open()


@pytest.mark.parametrize("scale", [1, 257], ids=["8-bit-map", "16-bit-map"])
def test_a_color_map_is_looked_up_where_asked_and_never_taken_for_gray(tmp_path, scale):
    tifffile.imwrite(tmp_path / "a.tif", GRAY8, photometric="palette", colormap=COLORS.T.astype(np.uint16) * scale)
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif", convert="rgb"), COLORS[GRAY8].transpose(2, 0, 1))
    grey = np.rint(COLORS[GRAY8].mean(axis=2))
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif", convert="grey")[0], grey)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", "mask"), GRAY8)
    for role, hint in (("image", "set `convert: rgb` or"), ("target", "color table; save it as gray")):
        with pytest.raises(UserError, match=hint):
            read(tmp_path / "a.tif", role)


def test_a_short_gray_palette_is_no_ramp_of_measured_values(tmp_path):
    colors = [0, 0, 0, 128, 128, 128, 255, 255, 255]
    picture = Image.fromarray(GRAY8 % 3, "P")
    picture.putpalette(colors)
    for name in ("a.png", "a.tif"):
        picture.save(tmp_path / name)
        with pytest.raises(UserError, match="indices into a color table"):
            read(tmp_path / name, "image")
        expected = np.array(colors[::3], np.uint8)[np.asarray(picture)]
        np.testing.assert_array_equal(pixels(tmp_path / name, convert="grey")[0], expected)


def test_lookup_tables_of_imagej_are_for_display(tmp_path):
    description = b"ImageJ=1.53\nimages=1\nmin=0.0\nmax=255.0\n"
    options = {"photometric": "palette", "colormap": COLORS.T.astype(np.uint16) * 257, "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", GRAY8, description=description, **options)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", "image")[0], GRAY8)
    assert "color table for display only" in note(open_image(tmp_path / "a.tif"))


def test_targets_that_are_jpeg(tmp_path):
    for name in ("a.jpg", "a.png"):
        Image.fromarray(GRAY8).save(tmp_path / name)
        files = [open_image(tmp_path / name)]
        assert role_notes("image", files) == []
        assert ("JPEG" in " ".join(role_notes("target", files))) == (name == "a.jpg")


# Alpha ----------------------------------------------------------------------------------------------------------------


def test_only_what_the_file_calls_alpha_is_dropped(tmp_path):
    for name, n, kind in (("grey.tif", 2, UNASSOCIATED), ("rgba.tif", 4, "assocalpha"), ("near.tif", 4, "unspecified")):
        options = {"photometric": "rgb" if n == 4 else "minisblack", "planarconfig": "contig", "extrasamples": [kind]}
        tifffile.imwrite(tmp_path / name, np.dstack([RGB8, GRAY8])[..., :n], **options)
    grey = np.broadcast_to(RGB8[..., 0], (3, 7, 9))
    np.testing.assert_array_equal(pixels(tmp_path / "grey.tif", convert="rgb"), grey)
    np.testing.assert_array_equal(pixels(tmp_path / "rgba.tif", convert="rgb"), RGB8.transpose(2, 0, 1))
    np.save(tmp_path / "a.npy", np.stack([GRAY8] * 4))
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([GRAY16] * 4), photometric="minisblack")
    for name in ("near.tif", "pages.tif", "a.npy"):
        with pytest.raises(UserError, match="does not say that the fourth is alpha"):
            convert_colors(open_image(tmp_path / name), "rgb")
    for convert, n_notes in ((None, 1), ("rgb", 0)):
        assert len(role_notes("image", [FileRef(tmp_path / "rgba.tif", convert=convert).open()])) == n_notes


# No data --------------------------------------------------------------------------------------------------------------


def write_nodata(path: Path, array: np.ndarray, text: str, **options: Any) -> None:
    tifffile.imwrite(path, array, extratags=[(GDAL_NODATA, "s", 0, text, True)], **options)


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [(np.float32, np.finfo(np.float32).min, "-3.4028234663852886e+38"), (np.float64, 0.1, " 0,1 ")],
)
def test_floats_without_data_are_nan(tmp_path, dtype, value, text):
    array = np.full((7, 9), 7, dtype)
    array[:5] = value
    write_nodata(tmp_path / "a.tif", array, text, tile=(16, 16), compression="zlib", byteorder=">")
    expected = np.full((7, 9), 7.0)
    expected[:5] = np.nan
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif")[0], expected)
    assert note(open_image(tmp_path / "a.tif")) == f'declares {text.strip()} as "no data"; such pixels are NaN'


@pytest.mark.parametrize(("dtype", "text"), [(np.uint8, "255"), (np.float32, "none")])
def test_other_declarations_of_no_data_are_noted(tmp_path, dtype, text):
    write_nodata(tmp_path / "a.tif", GRAY8.astype(dtype), text)
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif")[0], GRAY8)
    assert f'declares {text} as "no data"' in note(open_image(tmp_path / "a.tif"))


def test_fill_values_of_hdf5_datasets(tmp_path):
    stack = np.stack([GRAY16, GRAY16 // 2]).astype(np.float32)
    stack[1, :5] = 65535
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = stack
        file["x"].attrs["missing_value"] = np.array([65535], np.float32)
        file["x"].attrs["scale_factor"] = 0.1
    opened = FileRef(tmp_path / "a.h5", "NYX", (("N", 1),), array="x").open()
    np.testing.assert_array_equal(opened.rows(0, 7)[0], np.where(stack[1] == 65535, np.nan, stack[1]))
    assert "such pixels are NaN" in note(opened)
    assert "declares scale_factor; the values are kept as stored" in note(opened)
