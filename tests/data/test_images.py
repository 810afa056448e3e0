"""Every kind of image file gives the very numbers that were written, and says beforehand what it will give."""

import contextlib
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from project.data.images import EXACT_IN_FLOAT32, converted, naming, open_image, plain_dtype
from project.errors import UserError

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (7, 9), np.uint8)
GREY16 = RNG.integers(0, 65536, (7, 9), np.uint16)
STACK16 = RNG.integers(0, 65536, (3, 7, 9), np.uint16)
RGB8 = RNG.integers(0, 256, (7, 9, 3), np.uint8)


def check(path: Path, expected: np.ndarray, axes: str | None = None) -> None:
    """Header and pixels agree with each other and with `expected` (C, H, W)."""
    file = open_image(path, axes)
    array = file.read()
    assert file.shape == array.shape == expected.shape
    assert file.dtype == array.dtype == expected.dtype
    assert array.flags.c_contiguous
    assert array.dtype.isnative
    np.testing.assert_array_equal(array, expected)


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
    with pytest.raises(UserError, match="several pictures"):
        open_image(tmp_path / "a.gif")


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
            open_image(tmp_path / "a.npy").read()


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
    with pytest.raises(UserError, match=r"\(4, 3, 7, 9\) with axes TCYX"):
        open_image(tmp_path / "a.tif")


def test_wrong_axes(tmp_path):
    np.save(tmp_path / "a.npy", STACK16)
    with pytest.raises(UserError, match="set `axes`"):
        open_image(tmp_path / "a.npy", axes="TCYX")
    with pytest.raises(UserError, match="only images with one further axis"):
        open_image(tmp_path / "a.npy", axes="CZX")


def test_unknown_kind(tmp_path):
    with pytest.raises(UserError, match=r'"\.czi".*\.tif'):
        open_image(tmp_path / "a.czi")


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
        whole, content = open_image(path).read(), path.read_bytes()
        # tifffile silently gives fewer pages, or half a JPEG page, for some of these.
        for length in [0, 1, 9, 30, *(len(content) * n // 16 for n in range(1, 16)), len(content) - 4]:
            path.write_bytes(content[:length])
            array = None
            with contextlib.suppress(UserError), naming(path):
                array = open_image(path).read()
            assert array is None or np.array_equal(array, whole), f"{path.name} cut to {length} bytes"


def test_wrong_extension_names_the_file(tmp_path):
    np.save(tmp_path / "a.npy", GREY8)
    for name in ("a.tif", "a.png", "a.jpg"):
        path = (tmp_path / "a.npy").rename(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: cannot be read"), naming(path):
            open_image(path)
        path.rename(tmp_path / "a.npy")


def test_right_content_under_another_picture_extension_is_read(tmp_path):
    Image.fromarray(GREY8).save(tmp_path / "a.jpg", format="PNG")
    check(tmp_path / "a.jpg", GREY8[None])


def test_npy_with_objects_is_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"a\.npy: cannot be read"), naming(tmp_path / "a.npy"):
        open_image(tmp_path / "a.npy")


def test_file_changed_between_header_and_pixels(tmp_path):
    np.save(tmp_path / "a.npy", STACK16)
    file = open_image(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", STACK16[:, :5])
    with pytest.raises(UserError, match="header promises"):
        file.read()


# --- one kind out of several ---


def check_converted(path: Path, rgb: np.ndarray) -> None:
    """`rgb` is (H, W, 3)."""
    mean = np.rint(rgb.astype(np.float64).mean(axis=2)).astype(rgb.dtype)[None]
    for kind, expected in (("rgb", rgb.transpose(2, 0, 1)), ("grey", mean)):
        file = converted(open_image(path), kind)
        array = file.read()
        assert (file.shape, file.dtype) == (array.shape, array.dtype) == (expected.shape, expected.dtype)
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, expected)


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
    np.testing.assert_allclose(converted(open_image(tmp_path / "a.npy"), "grey").read(), 0.3, rtol=1e-6)


@pytest.mark.parametrize("n_channels", [2, 5])
def test_stacks_are_neither_grey_nor_colour(tmp_path, n_channels):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([GREY16] * n_channels), photometric="minisblack")
    with pytest.raises(UserError, match=f"an image of {n_channels} channels is neither grey nor colour"):
        converted(open_image(tmp_path / "a.tif"), "rgb")
