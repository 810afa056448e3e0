"""Every kind of image file gives the very numbers that were written, and says beforehand what it will give."""

import contextlib
import os
import pickle
import struct
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from project.data import images
from project.data.images import (
    EXACT_IN_FLOAT32,
    FileRef,
    ImageFile,
    axis_sizes,
    converted,
    naming,
    open_image,
    plain_dtype,
)
from project.errors import UserError

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (7, 9), np.uint8)
GREY16 = RNG.integers(0, 65536, (7, 9), np.uint16)
STACK16 = RNG.integers(0, 65536, (3, 7, 9), np.uint16)
RGB8 = RNG.integers(0, 256, (7, 9, 3), np.uint8)


def read(file: ImageFile) -> np.ndarray:
    return file.read(0, file.shape[1])


def check_file(file: ImageFile, expected: np.ndarray) -> None:
    """Header and pixels, whole and in bands, agree with each other and with `expected` (C, H, W)."""
    height = expected.shape[1]
    assert file.shape == expected.shape
    assert file.dtype == expected.dtype
    for y0, y1 in ((0, height), (0, 1), (height - 1, height), (height // 3, height // 2 + 1), (1, 1)):
        array = file.read(y0, y1)
        assert array.dtype == expected.dtype
        assert array.flags.c_contiguous
        assert array.dtype.isnative
        np.testing.assert_array_equal(array, expected[:, y0:y1])


def check(path: Path, expected: np.ndarray, axes: str | None = None, **options: Any) -> None:
    check_file(open_image(path, axes, **options), expected)


@pytest.mark.parametrize(
    ("array", "options", "expected"),
    [
        pytest.param(GREY16, {}, GREY16[None], id="YX"),
        pytest.param(GREY8, {}, GREY8[None], id="YX-8bit"),
        pytest.param(STACK16, {"photometric": "minisblack"}, STACK16, id="pages"),
        pytest.param(STACK16, {"imagej": True, "metadata": {"axes": "CYX"}}, STACK16, id="CYX-imagej"),
        pytest.param(STACK16[:, None], {"ome": True, "metadata": {"axes": "CZYX"}}, STACK16, id="singleton-ome"),
        pytest.param(GREY16[:1], {}, GREY16[None, :1], id="one-row-high"),
        pytest.param(RGB8, {"photometric": "rgb"}, RGB8.transpose(2, 0, 1), id="YXS-rgb"),
        pytest.param(
            RGB8.transpose(2, 0, 1),
            {"photometric": "rgb", "planarconfig": "separate"},
            RGB8.transpose(2, 0, 1),
            id="SYX-rgb-planes",
        ),
        pytest.param(STACK16, {"byteorder": ">", "photometric": "minisblack"}, STACK16, id="big-endian"),
        pytest.param(STACK16, {"compression": "lzw", "photometric": "minisblack"}, STACK16, id="lzw"),
        pytest.param(GREY16, {"compression": "zlib", "predictor": True, "tile": (16, 16)}, GREY16[None], id="tiles"),
        pytest.param(STACK16, {"bigtiff": True, "photometric": "minisblack"}, STACK16, id="bigtiff"),
        pytest.param(GREY8 > 99, {}, (GREY8 > 99).astype(np.uint8)[None], id="bits"),
    ],
)
def test_tiff(tmp_path, array, options, expected):
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    check(tmp_path / "a.tif", expected)


def test_tiff_pages_written_one_by_one_are_one_stack(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.TIFF") as tiff:
        for page in STACK16:
            tiff.write(page, metadata=None, photometric="minisblack")
    check(tmp_path / "a.TIFF", STACK16)


def test_tiff_with_several_images_is_refused_instead_of_giving_the_first(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for page in STACK16:
            tiff.write(page, photometric="minisblack")
    with pytest.raises(UserError, match="3 separate images"):
        open_image(tmp_path / "a.tif")


def test_tiff_thumbnail_does_not_disturb(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(GREY16)
        tiff.write(GREY16[::2, ::2], subfiletype=1)
    check(tmp_path / "a.tif", GREY16[None])


def test_grey_pictures(tmp_path):
    for name, array in (("a8.png", GREY8), ("a16.png", GREY16), ("a.bmp", GREY8)):
        Image.fromarray(array).save(tmp_path / name)
        check(tmp_path / name, array[None])


def test_bilevel_png_is_0_and_1(tmp_path):
    Image.fromarray(GREY8 > 99).save(tmp_path / "a.png")
    check(tmp_path / "a.png", (GREY8 > 99).astype(np.uint8)[None])


def write_png(path: Path, width: int, height: int, bits: int, rows: bytes) -> None:
    """A grey PNG by hand, of depths and sizes that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize(("bits", "packed"), [(2, [0b00011011, 0b11100100]), (4, [0x01, 0x23, 0xAF, 0x74])])
def test_png_of_few_bits_is_not_stretched(tmp_path, bits, packed):
    write_png(tmp_path / "a.png", 8, 1, bits, bytes([0, *packed]))
    expected = [[0, 1, 2, 3, 3, 2, 1, 0]] if bits == 2 else [[0, 1, 2, 3, 10, 15, 7, 4]]
    check(tmp_path / "a.png", np.array([expected], np.uint8))


def test_large_picture_is_no_attack(tmp_path):
    write_png(tmp_path / "slide.png", 30_000, 20_000, 1, b"")
    assert open_image(tmp_path / "slide.png").shape == (1, 20_000, 30_000)


def test_colour_png_of_16_bits_keeps_its_values(tmp_path):
    for channels in (3, 4):
        array = RNG.integers(0, 65536, (7, 9, channels), np.uint16)
        (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(array))
        check(tmp_path / "a.png", array.transpose(2, 0, 1))


def test_a_transparent_colour_of_png_is_no_channel(tmp_path):
    for array, colour in ((GREY8, 5), (GREY16, 5), (RGB8, (1, 2, 3))):
        Image.fromarray(array).save(tmp_path / "a.png", transparency=colour)
        check(tmp_path / "a.png", array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    colour16 = np.ascontiguousarray(STACK16.transpose(1, 2, 0))
    content = imagecodecs.png_encode(colour16)
    data = b"tRNS" + bytes(6)
    chunk = struct.pack(">I", 6) + data + struct.pack(">I", zlib.crc32(data))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    check(tmp_path / "a.png", STACK16)


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_palette_gives_the_index(tmp_path, name):
    classes = GREY8 % 3
    picture = Image.fromarray(classes, "P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 7, 7, 7])
    picture.save(tmp_path / name)
    check(tmp_path / name, classes[None])


def test_colour_pictures(tmp_path):
    rgba = np.concatenate([RGB8, GREY8[..., None]], axis=2)
    for name, array in (("a.png", RGB8), ("rgba.png", rgba), ("a.bmp", RGB8), ("a.webp", RGB8)):
        Image.fromarray(array).save(tmp_path / name, lossless=True)
        check(tmp_path / name, array.transpose(2, 0, 1))


def test_jpeg(tmp_path):
    Image.fromarray(RGB8).save(tmp_path / "a.jpg")
    check(tmp_path / "a.jpg", imagecodecs.jpeg8_decode((tmp_path / "a.jpg").read_bytes()).transpose(2, 0, 1))
    Image.fromarray(GREY8).save(tmp_path / "grey.JPEG")
    assert open_image(tmp_path / "grey.JPEG").shape == (1, 7, 9)


def test_cmyk_and_animations_are_refused(tmp_path):
    Image.fromarray(RGB8).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="CMYK"):
        open_image(tmp_path / "a.jpg")
    Image.fromarray(GREY8).save(tmp_path / "a.gif", save_all=True, append_images=[Image.fromarray(255 - GREY8)])
    Image.fromarray(GREY8).save(tmp_path / "a.png", save_all=True, append_images=[Image.fromarray(255 - GREY8)])
    for name in ("a.gif", "a.png"):
        with pytest.raises(UserError, match="several pictures"):
            open_image(tmp_path / name)


def test_npy(tmp_path):
    path = tmp_path / "a.npy"
    for array in (STACK16, np.asfortranarray(STACK16), STACK16.astype(">u2")):
        np.save(path, array)
        check(path, STACK16)
    np.save(path, GREY16)
    check(path, GREY16[None])
    np.save(path, STACK16.transpose(1, 2, 0))
    check(path, STACK16, axes="YXC")


def test_npy_with_channels_last_is_noticed(tmp_path):
    np.save(tmp_path / "a.npy", RGB8)
    with pytest.raises(UserError, match="axes: YXC"):
        open_image(tmp_path / "a.npy")


def test_axes_of_the_images_do_not_disturb_a_plain_mask(tmp_path):
    tifffile.imwrite(tmp_path / "mask.tif", GREY8)
    check(tmp_path / "mask.tif", GREY8[None], axes="YXC")


@pytest.mark.parametrize(
    ("dtype", "final"),
    [
        (np.bool_, np.uint8),
        (np.uint8, np.uint8),
        (np.uint16, np.uint16),
        (np.int8, np.float32),
        (np.int16, np.float32),
        (np.uint32, np.float32),
        (np.int32, np.float32),
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


def test_complex_values_are_refused():
    with pytest.raises(UserError, match="complex64"):
        plain_dtype(np.zeros((1, 2, 2), np.complex64))


@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (9,), (0, 5)])
def test_arrays_that_are_no_image(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=r"array of shape"):
        open_image(tmp_path / "a.npy")


def test_two_further_axes_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 3, 7, 9), np.uint16), imagej=True, metadata={"axes": "TCYX"})
    with pytest.raises(UserError, match=r"T: 4, C: 3.* set .*`pages: \{T: samples, C: channels\}`"):
        open_image(tmp_path / "a.tif")


def test_wrong_axes(tmp_path):
    np.save(tmp_path / "a.npy", STACK16)
    with pytest.raises(UserError, match="set `axes`"):
        open_image(tmp_path / "a.npy", axes="TCYX")
    with pytest.raises(UserError, match="one axis Y and one X"):
        open_image(tmp_path / "a.npy", axes="CZX")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tif", b"", "is empty"),
        ("a.png", b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        ("a.jpg", "id,label\n1,naïve\n".encode(), 'text file, which begins with "id,label'),
        ("a.tif", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("a.npy", b"\x89HDF\r\n\x1a\n\0\0", "is an HDF5 file"),
        ("a.tif", bytes(range(128, 256)), "none of a TIFF or another known file"),
        ("a.czi", bytes(range(128, 256)), r'"\.czi".*\.tif'),
    ],
)
def test_unknown_content(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_image(tmp_path / name)


def write_all_kinds(folder: Path) -> list[Path]:
    noise = RNG.integers(0, 65536, (3, 40, 50), np.uint16)
    for name, options in (("raw", {}), ("lzw", {"compression": "lzw"}), ("tiles", {"tile": (16, 16)})):
        tifffile.imwrite(folder / f"{name}.tif", noise, photometric="minisblack", **options)
    tifffile.imwrite(folder / "jpeg.tif", (noise >> 8).astype(np.uint8), photometric="minisblack", compression="jpeg")
    Image.fromarray(noise[0]).save(folder / "a.png")
    (folder / "colour.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(noise.transpose(1, 2, 0))))
    Image.fromarray((noise[0] >> 8).astype(np.uint8)).save(folder / "a.jpg")
    np.save(folder / "a.npy", noise)
    return sorted(folder.iterdir())


def test_cut_off_files_are_never_read_in_part(tmp_path):
    for path in write_all_kinds(tmp_path):
        whole, content = read(open_image(path)), path.read_bytes()
        # tifffile silently gives fewer pages, or half a JPEG page, for some of these.
        for length in [0, 1, 9, 30, *(len(content) * n // 16 for n in range(1, 16)), len(content) - 4]:
            path.write_bytes(content[:length])
            array = None
            with contextlib.suppress(UserError), naming(path):
                array = read(open_image(path))
            assert array is None or np.array_equal(array, whole), f"{path.name} cut to {length} bytes"


def test_kind_is_told_by_the_content(tmp_path):
    rgb = RGB8.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "tiff.png", GREY16)
    Image.fromarray(GREY16).save(tmp_path / "png.tif", format="PNG")
    Image.fromarray(RGB8).save(tmp_path / "bmp.JPG", format="BMP")
    Image.fromarray(RGB8).save(tmp_path / "webp.npy", format="WEBP", lossless=True)
    with (tmp_path / "npy.tiff").open("wb") as file:
        np.save(file, GREY16)
    tifffile.imwrite(tmp_path / "scan.lsm.tif", GREY16)
    (tmp_path / "scan.lsm.tif").rename(tmp_path / "scan.svs")
    kinds = {"tiff.png": "TIFF", "png.tif": "PNG", "bmp.JPG": "BMP", "webp.npy": "WebP", "npy.tiff": "NPY"}
    for name, kind in kinds.items():
        check(tmp_path / name, rgb if kind in ("BMP", "WebP") else GREY16[None])
        assert open_image(tmp_path / name).note == f"is a {kind} file, whatever its name says"
    check(tmp_path / "scan.svs", GREY16[None])
    assert open_image(tmp_path / "scan.svs").note == ""


def test_jpeg_under_another_name(tmp_path):
    Image.fromarray(RGB8).save(tmp_path / "a.png", format="JPEG")
    check(tmp_path / "a.png", imagecodecs.jpeg8_decode((tmp_path / "a.png").read_bytes()).transpose(2, 0, 1))
    assert "is a JPEG file" in open_image(tmp_path / "a.png").note


def test_pictures_are_not_turned_but_it_is_said(tmp_path):
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    for name, options in (("a.jpg", {}), ("a.png", {}), ("a.webp", {"lossless": True})):
        Image.fromarray(RGB8).save(tmp_path / name, exif=exif, **options)
        assert open_image(tmp_path / name).shape == (3, 7, 9)
        assert "orientation 6" in open_image(tmp_path / name).note
    tifffile.imwrite(tmp_path / "a.tif", GREY8, extratags=[(images.ORIENTATION, "H", 1, 3, True)])
    check(tmp_path / "a.tif", GREY8[None])
    assert "orientation 3" in open_image(tmp_path / "a.tif").note
    exif[images.ORIENTATION] = 1
    Image.fromarray(RGB8).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").note == ""


def test_npy_with_objects_is_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"a\.npy: .*Python objects"), naming(tmp_path / "a.npy"):
        open_image(tmp_path / "a.npy")


def test_file_changed_between_header_and_pixels(tmp_path):
    np.save(tmp_path / "a.npy", STACK16)
    file = open_image(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", STACK16[:, :5])
    with pytest.raises(UserError, match="written again after it was opened"):
        read(file)


# --- one kind out of several ---


def check_converted(path: Path, rgb: np.ndarray) -> None:
    """`rgb` is (H, W, 3)."""
    mean = np.rint(rgb.astype(np.float64).mean(axis=2)).astype(rgb.dtype)[None]
    for kind, expected in (("rgb", rgb.transpose(2, 0, 1)), ("grey", mean)):
        file = converted(open_image(path), kind)
        check_file(file, expected)
        check_file(FileRef(path, convert=kind).open(), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pictures_of_every_kind_become_one_kind(tmp_path, mode):
    values = RNG.integers(0, 256, (7, 9, len(mode) if mode != "L" else 1), np.uint8)
    Image.fromarray(values[..., 0] if mode == "L" else values, mode).save(tmp_path / "a.png")
    check_converted(tmp_path / "a.png", values[..., :3] if len(mode) > 2 else values[..., :1].repeat(3, axis=2))


def test_a_palette_is_looked_up_and_not_taken_for_grey(tmp_path):
    numbers = GREY8 % 3
    picture = Image.fromarray(numbers, "P")
    picture.putpalette(colours := [200, 10, 0, 0, 50, 250, 90, 91, 93])
    picture.save(tmp_path / "a.png")
    check_converted(tmp_path / "a.png", np.array(colours, np.uint8).reshape(3, 3)[numbers])


def test_16_bit_files_stay_16_bit(tmp_path):
    tifffile.imwrite(tmp_path / "grey.tif", GREY16)
    check_converted(tmp_path / "grey.tif", np.stack([GREY16] * 3, axis=2))
    colour = STACK16.transpose(1, 2, 0)
    (tmp_path / "colour.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(colour)))
    check_converted(tmp_path / "colour.png", colour)


def test_grey_of_floats_is_not_rounded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([0.1, 0.2, 0.6], np.float32).reshape(3, 1, 1) * np.ones((3, 7, 9), np.float32))
    np.testing.assert_allclose(read(converted(open_image(tmp_path / "a.npy"), "grey")), 0.3, rtol=1e-6)


@pytest.mark.parametrize("n_channels", [2, 5])
def test_stacks_are_neither_grey_nor_colour(tmp_path, n_channels):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([GREY16] * n_channels), photometric="minisblack")
    with pytest.raises(UserError, match=f"an image of {n_channels} channels is neither grey nor colour"):
        converted(open_image(tmp_path / "a.tif"), "rgb")


# --- rows alone ---

LARGE = RNG.integers(0, 65536, (50, 70), np.uint16)
LARGE_RGB = RNG.integers(0, 256, (50, 70, 3), np.uint8)
SMOOTH_RGB = np.add.outer(np.arange(50), np.arange(70))[..., None].astype(np.uint8) + np.arange(3, dtype=np.uint8)
LAYOUTS = {
    "strips": {"rowsperstrip": 8},
    "one-strip": {"rowsperstrip": 50},
    "tiles": {"tile": (16, 32)},
    "tile-as-wide-as-the-image": {"tile": (16, 80)},
}
COMPRESSIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "deflate": {"compression": "zlib"},
    "lzw": {"compression": "lzw"},
    "zstd": {"compression": "zstd"},
    "predictor": {"compression": "zlib", "predictor": True},
}


def check_against_tifffile(path: Path, *, by_region: bool) -> None:
    """Bands are those of the whole array of tifffile; single channels too."""
    with tifffile.TiffFile(path) as tiff:
        whole, axes = tiff.series[0].asarray(), tiff.series[0].axes
    whole = whole[None] if whole.ndim == 2 else np.moveaxis(whole, -1, 0) if axes[-1] == "S" else whole
    file = open_image(path)
    check_file(file, plain_dtype(whole))
    assert file.by_region == by_region
    for channel in {0, len(whole) - 1}:
        check_file(FileRef(path, channel=channel).open(), plain_dtype(whole[channel : channel + 1]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_rows_of_tiff(tmp_path, layout, compression, byteorder):
    path = tmp_path / "a.tif"
    options: dict[str, Any] = LAYOUTS[layout] | COMPRESSIONS[compression] | {"byteorder": byteorder}
    by_region = layout != "one-strip" or compression == "none"
    for dtype in (np.uint8, np.uint16, np.float32):
        tifffile.imwrite(path, (LARGE / 7).astype(dtype), **options)
        check_against_tifffile(path, by_region=by_region)
    for planes in ("contig", "separate"):
        array = LARGE_RGB if planes == "contig" else np.ascontiguousarray(LARGE_RGB.transpose(2, 0, 1))
        tifffile.imwrite(path, array, photometric="rgb", planarconfig=planes, **options)
        check_against_tifffile(path, by_region=by_region)
    tifffile.imwrite(path, np.stack([LARGE, LARGE[::-1], LARGE // 3]), photometric="minisblack", **options)
    check_against_tifffile(path, by_region=by_region)
    with tifffile.TiffWriter(path, bigtiff=True, byteorder=byteorder) as tiff:
        for page in (LARGE, LARGE // 2):  # each behind its own header
            options.pop("byteorder", None)
            tiff.write(page, metadata=None, photometric="minisblack", **options)
    check_against_tifffile(path, by_region=by_region)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("array", [SMOOTH_RGB, SMOOTH_RGB[..., 0]], ids=["colour", "grey"])
def test_rows_of_jpeg_in_tiff(tmp_path, layout, array):
    options = LAYOUTS[layout] if layout != "strips" else {"rowsperstrip": 16}
    photometric = "rgb" if array.ndim == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", array, photometric=photometric, compression="jpeg", **options)
    check_against_tifffile(tmp_path / "a.tif", by_region=layout != "one-strip")


def test_jpeg_tables_that_segments_share(tmp_path):
    Image.fromarray(SMOOTH_RGB).save(tmp_path / "a.tif", compression="jpeg", strip_size=16 * 70 * 3)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.pages[0].jpegtables
    check_against_tifffile(tmp_path / "a.tif", by_region=open_image(tmp_path / "a.tif").by_region)


def test_missing_segments_hold_the_value_for_no_data(tmp_path):
    def tiles():
        yield b""
        yield np.full((32, 32), 7, np.uint16).tobytes()
        yield from [b""] * 4

    for extra in ((), [(42113, "s", 0, "9", True)]):  # the tag GDAL_NODATA
        tifffile.imwrite(tmp_path / "a.tif", tiles(), shape=(50, 70), dtype=np.uint16, tile=(32, 32), extratags=extra)
        check_against_tifffile(tmp_path / "a.tif", by_region=True)
    assert read(open_image(tmp_path / "a.tif"))[0, 49, 0] == 9


def test_only_the_largest_picture_of_a_pyramid_is_read(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        tiff.write(LARGE, subifds=1, tile=(16, 16), compression="zlib")
        tiff.write(LARGE[::2, ::2], subfiletype=1, tile=(16, 16), compression="zlib")
    check(tmp_path / "a.ome.tif", LARGE[None])
    assert open_image(tmp_path / "a.ome.tif").by_region


def test_rows_that_are_pages(tmp_path):
    array = RNG.integers(0, 65536, (6, 8, 9), np.uint16)
    for options in ({}, {"compression": "zlib"}):
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", **options)
        check(tmp_path / "a.tif", array.transpose(2, 0, 1), axes="YXC")
        check(tmp_path / "a.tif", array.transpose(1, 0, 2), axes="YCX")
        check(tmp_path / "a.tif", array.transpose(0, 2, 1), axes="CXY")
        assert open_image(tmp_path / "a.tif", "YXC").by_region
        assert open_image(tmp_path / "a.tif", "CXY").by_region == (not options)


def test_rows_of_npy_are_mapped(tmp_path):
    for array in (LARGE, np.asfortranarray(LARGE), LARGE.astype(">u2")):
        np.save(tmp_path / "a.npy", array)
        check(tmp_path / "a.npy", LARGE[None])
        assert open_image(tmp_path / "a.npy").by_region
        check(tmp_path / "a.npy", LARGE.T[None], axes="XY")


def test_pictures_are_read_as_a_whole(tmp_path):
    Image.fromarray(GREY8).save(tmp_path / "a.png")
    assert not open_image(tmp_path / "a.png").by_region
    band = open_image(tmp_path / "a.png").read(2, 4)
    assert band.base is None or band.base.nbytes == band.nbytes, "the band keeps the whole image alive"


@pytest.mark.parametrize(("options", "share"), [({"tile": (64, 64)}, 0.1), ({"rowsperstrip": 16}, 0.1), ({}, 0.1)])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_band_takes_the_memory_of_a_band(tmp_path, options, share, compression):
    if not options and compression:
        options = {"rowsperstrip": 64}
    image = np.zeros((2048, 1024), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, compression=compression, **options)
    file = open_image(tmp_path / "a.tif")
    tracemalloc.start()
    file.read(1000, 1064)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < share * image.nbytes


def test_rows_that_are_not_there(tmp_path):
    np.save(tmp_path / "a.npy", GREY8)
    for rows in ((-1, 3), (0, 8), (5, 4)):
        with pytest.raises(ValueError, match="there are no rows"):
            open_image(tmp_path / "a.npy").read(*rows)


# --- one channel ---


def decoded_segments(monkeypatch, work) -> int:
    """How many segments tifffile is asked to decode meanwhile."""
    count = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return decode(*args, **options)

    decode = images.imagecodecs.zlib_decode
    for key, name in ((8, "ADOBE_DEFLATE"), (32946, "DEFLATE")):
        assert key in tifffile.TIFF.DECOMPRESSORS, name
    monkeypatch.setitem(tifffile.TIFF.DECOMPRESSORS._codecs, 8, counted)
    work()
    return count


def test_one_page_of_a_stack_does_not_decode_the_others(tmp_path, monkeypatch):
    stack = RNG.integers(0, 256, (40, 32, 32), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", compression="zlib", rowsperstrip=8)
    count = decoded_segments(monkeypatch, lambda: check_page(tmp_path / "a.tif", 33, stack))
    assert count == 4 + 1


def check_page(path: Path, channel: int, stack: np.ndarray) -> None:
    file = FileRef(path, channel=channel).open()
    np.testing.assert_array_equal(read(file), stack[channel : channel + 1])
    np.testing.assert_array_equal(file.read(9, 15), stack[channel : channel + 1, 9:15])


def test_one_plane_of_colours_does_not_decode_the_others(tmp_path, monkeypatch):
    planes = np.ascontiguousarray(LARGE_RGB.transpose(2, 0, 1))
    options: dict[str, Any] = {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", planes, rowsperstrip=50, **options)
    assert decoded_segments(monkeypatch, lambda: check_page(tmp_path / "a.tif", 2, planes)) == 2


def test_the_header_of_a_stack_is_parsed_once(tmp_path, monkeypatch):
    parsed = []
    parse = tifffile.TiffFile.__init__
    monkeypatch.setattr(tifffile.TiffFile, "__init__", lambda *a, **k: (parsed.append(1), parse(*a, **k))[1])
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK16, photometric="minisblack")
    os.utime(path, (0, 0))
    for channel in (0, 1, 2, 0):
        check_file(FileRef(path, channel=channel).open(), STACK16[channel : channel + 1])
    assert len(parsed) == 1
    tifffile.imwrite(path, STACK16[::-1], photometric="minisblack")  # the same size, another time
    check(path, STACK16[::-1])


def test_a_file_written_again_at_once_is_not_taken_for_the_old_one(tmp_path):
    now = time.time_ns()
    for byteorder in "<>":
        tifffile.imwrite(tmp_path / "a.tif", GREY16, byteorder=byteorder)
        os.utime(tmp_path / "a.tif", ns=(now, now))  # within one tick of the clock
        check(tmp_path / "a.tif", GREY16[None])


def test_a_channel_that_is_not_there(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK16, photometric="minisblack")
    for channel in (3, -1):
        with pytest.raises(UserError, match=f"there is no channel {channel}: the file has 3"):
            FileRef(tmp_path / "a.tif", channel=channel).open()
    tifffile.imwrite(tmp_path / "a.tif", GREY16)
    check_file(FileRef(tmp_path / "a.tif", channel=0).open(), GREY16[None])


def test_a_reference_is_a_small_value(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK16, photometric="minisblack")
    ref = FileRef(tmp_path / "a.tif", channel=1, pages=(("Q", "channels"),))
    ref.open()
    same = pickle.loads(pickle.dumps(ref))
    assert same == ref
    assert hash(same) == hash(ref)
    assert str(ref) == str(tmp_path / "a.tif")
    assert ref.paths == (tmp_path / "a.tif",)
    check_file(same.open(), STACK16[1:2])


# --- several further axes ---

HYPER = RNG.integers(0, 1000, (4, 3, 2, 7, 9), np.uint16)  # TZCYX
WRITERS: dict[str, dict[str, Any]] = {
    "imagej": {"imagej": True, "metadata": {"axes": "TZCYX"}},
    "ome": {"ome": True, "metadata": {"axes": "TZCYX"}},
    "ome-compressed": {"ome": True, "metadata": {"axes": "TZCYX"}, "compression": "zlib", "rowsperstrip": 3},
    "shaped": {"metadata": {"axes": "TZCYX"}},
}


@pytest.mark.parametrize("writer", WRITERS)
def test_further_axes(tmp_path, writer):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, HYPER, photometric="minisblack", **WRITERS[writer])
    assert axis_sizes(path) == {"T": 4, "Z": 3, "C": 2}
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
    check_file(channel.open(), HYPER[2].max(0)[1:])


def test_other_orders_of_axes(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", HYPER[:, 0], ome=True, photometric="minisblack", metadata={"axes": "TCYX"})
    check(tmp_path / "a.tif", HYPER[2, 0], pages=(("C", "channels"), ("T", 2)))
    check(tmp_path / "a.tif", HYPER[:, 0, 1], pages=(("C", 1), ("T", "channels")))
    np.save(tmp_path / "a.npy", HYPER.transpose(0, 3, 4, 2, 1))
    check(tmp_path / "a.npy", HYPER[2].max(0), axes="TYXCZ", pages=(("T", 2), ("C", "channels"), ("Z", "max")))
    assert axis_sizes(tmp_path / "a.npy", "TYXCZ") == {"T": 4, "C": 2, "Z": 3}


def test_colours_are_channels(tmp_path):
    series = RNG.integers(0, 256, (4, 7, 9, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", series, photometric="rgb", metadata={"axes": "TYXS"})
    assert axis_sizes(tmp_path / "a.tif") == {"T": 4, "C": 3}
    check(tmp_path / "a.tif", series[1].transpose(2, 0, 1), pages=(("T", 1), ("C", "channels")))
    Image.fromarray(RGB8).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "rgb.tif", RGB8, photometric="rgb")
    tifffile.imwrite(tmp_path / "grey.tif", GREY8, imagej=True)
    assert axis_sizes(tmp_path / "a.png") == axis_sizes(tmp_path / "rgb.tif") == {"C": 3}
    assert axis_sizes(tmp_path / "grey.tif") == {}


def test_axes_of_length_1_may_be_named_or_not(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", HYPER[:1, :, 0], ome=True, photometric="minisblack", metadata={"axes": "TZYX"})
    assert axis_sizes(tmp_path / "a.tif") == {"Z": 3}
    check(tmp_path / "a.tif", HYPER[:1, :, 0].max(1), pages=(("Z", "max"),))
    check(tmp_path / "a.tif", HYPER[:1, :, 0].max(1), pages=(("T", 0), ("Z", "max"), ("C", "channels")))
    with pytest.raises(UserError, match="no position 1 of axis T, which has 1"):
        open_image(tmp_path / "a.tif", pages=(("T", 1), ("Z", "max")))


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
        ((("T", 0),), r"what becomes of Z and C, as `pages: \{T: 0, Z: max, C: channels\}`"),
        ((("P", 0), ("T", 0)), "no axis P; the axes of the file are T: 4, Z: 3, C: 2"),
        ((("T", 4), ("Z", 0), ("C", 0)), "no position 4 of axis T, which has 4"),
        ((("T", -1), ("Z", 0), ("C", 0)), "no position -1 of axis T"),
        ((("T", "channels"), ("Z", 0), ("C", "channels")), "only one axis"),
        ((("T", "median"), ("Z", 0), ("C", 0)), '"median" of axis T is none of'),
    ],
)
def test_pages_that_do_not_fit(tmp_path, pages, message):
    tifffile.imwrite(tmp_path / "a.tif", HYPER, imagej=True, metadata={"axes": "TZCYX"})
    with pytest.raises(UserError, match=message):
        open_image(tmp_path / "a.tif", pages=pages)


def test_axes_without_names(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", HYPER[0], photometric="minisblack")
    for call in (open_image, axis_sizes):
        with pytest.raises(UserError, match="set `axes`"):
            call(tmp_path / "a.tif")
    check(tmp_path / "a.tif", HYPER[0].max(0), axes="ZCYX", pages=(("Z", "max"), ("C", "channels")))
    np.save(tmp_path / "a.npy", STACK16)
    with pytest.raises(UserError, match="no axis T; the axes of the file are C: 3"):
        open_image(tmp_path / "a.npy", pages=(("T", 0), ("C", "channels")))


# --- images that a function gives ---


def test_image_of_a_function():
    check_file(ImageFile.of(lambda: GREY16), GREY16[None])
    check_file(ImageFile.of(lambda: STACK16.astype(">i4")), STACK16.astype(np.float32))
    assert not ImageFile.of(lambda: GREY16).by_region
    calls = []
    file = ImageFile.of(lambda: calls.append(1) or GREY8)
    assert len(calls) == 1
    read(file)
    assert len(calls) == 2


def test_a_function_that_gives_no_image():
    for array in (np.zeros(5), np.zeros((2, 3, 4, 5)), np.zeros((0, 5))):
        with pytest.raises(UserError, match="is no image"):
            ImageFile.of(lambda array=array: array)
    given = iter([GREY8, GREY16])
    file = ImageFile.of(lambda: next(given))
    with pytest.raises(UserError, match=r"was uint8 .* now it is uint16"):
        read(file)
