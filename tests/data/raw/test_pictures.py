"""PNG, JPEG and other pictures keep the numbers that were written."""

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from raw_images import GRAY8, GRAY16, RGB8, RNG, STACK16, check, note, open_image

from project.data.raw.lazy_image import ORIENTATION
from project.errors import UserError


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path: Path, width: int, height: int, bits: int, rows: bytes) -> None:
    """A grey PNG by hand, of depths and sizes that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_gray_pictures(tmp_path):
    for name, array in (("a8.png", GRAY8), ("a16.png", GRAY16), ("a.bmp", GRAY8)):
        Image.fromarray(array).save(tmp_path / name)
        check(tmp_path / name, array[None])
    Image.fromarray(GRAY8 > 99).save(tmp_path / "a.png")  # 0 and 1
    check(tmp_path / "a.png", (GRAY8 > 99).astype(np.uint8)[None])


@pytest.mark.parametrize(("bits", "packed"), [(2, [0b00011011, 0b11100100]), (4, [0x01, 0x23, 0xAF, 0x74])])
def test_png_of_few_bits_is_not_stretched(tmp_path, bits, packed):
    write_png(tmp_path / "a.png", 8, 1, bits, bytes([0, *packed]))
    expected = [[0, 1, 2, 3, 3, 2, 1, 0]] if bits == 2 else [[0, 1, 2, 3, 10, 15, 7, 4]]
    check(tmp_path / "a.png", np.array([expected], np.uint8))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_png_of_16_bits_keeps_its_values(tmp_path, channels):
    array = RNG.integers(0, 65536, (7, 9, channels), np.uint16)
    content = imagecodecs.png_encode(array)
    exif = png_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0\0\0\0\0")
    for png in (content, content[:33] + exif + content[33:]):
        (tmp_path / "a.png").write_bytes(png)
        check(tmp_path / "a.png", array.transpose(2, 0, 1))


def test_a_transparent_color_of_png_is_not_a_channel(tmp_path):
    for array, colour in ((GRAY8, 5), (GRAY16, 5), (RGB8, (1, 2, 3))):
        Image.fromarray(array).save(tmp_path / "a.png", transparency=colour)
        check(tmp_path / "a.png", array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
        assert note(open_image(tmp_path / "a.png")) == "declares a transparent color, which is not used"
    colour16 = np.ascontiguousarray(STACK16.transpose(1, 2, 0))
    content = imagecodecs.png_encode(colour16)
    (tmp_path / "a.png").write_bytes(content[:33] + png_chunk(b"tRNS", bytes(6)) + content[33:])
    check(tmp_path / "a.png", STACK16)


def test_color_pictures(tmp_path):
    rgba = np.concatenate([RGB8, GRAY8[..., None]], axis=2)
    for name, array in (("a.png", RGB8), ("rgba.png", rgba), ("a.bmp", RGB8), ("a.webp", RGB8)):
        Image.fromarray(array).save(tmp_path / name, lossless=True)
        check(tmp_path / name, array.transpose(2, 0, 1))


def test_jpeg(tmp_path):
    Image.fromarray(RGB8).save(tmp_path / "a.jpg")
    check(tmp_path / "a.jpg", imagecodecs.jpeg8_decode((tmp_path / "a.jpg").read_bytes()).transpose(2, 0, 1))
    Image.fromarray(GRAY8).save(tmp_path / "grey.JPEG")
    assert open_image(tmp_path / "grey.JPEG").shape == (1, 7, 9)


def test_cmyk_and_animations_are_refused(tmp_path):
    Image.fromarray(RGB8).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="CMYK"):
        open_image(tmp_path / "a.jpg")
    Image.fromarray(GRAY8).save(tmp_path / "a.gif", save_all=True, append_images=[Image.fromarray(255 - GRAY8)])
    Image.fromarray(GRAY8).save(tmp_path / "a.png", save_all=True, append_images=[Image.fromarray(255 - GRAY8)])
    for name in ("a.gif", "a.png"):
        with pytest.raises(UserError, match="several pictures"):
            open_image(tmp_path / name)


@pytest.mark.parametrize("orientation", [3, 6])
def test_pictures_are_not_turned_but_it_is_said(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for name, options in (("a.jpg", {}), ("a.png", {}), ("a.webp", {"lossless": True})):
        Image.fromarray(RGB8).save(tmp_path / name, exif=exif, **options)
        assert open_image(tmp_path / name).shape == (3, 7, 9)
        assert f"orientation {orientation}" in note(open_image(tmp_path / name))
    exif[ORIENTATION] = 1
    Image.fromarray(RGB8).save(tmp_path / "a.jpg", exif=exif)
    assert note(open_image(tmp_path / "a.jpg")) == ""
