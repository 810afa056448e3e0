"""The content of a file decides on its reader; a broken or changed file is never read in part; values are kept."""

import contextlib
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from raw_folders import find
from raw_images import GRAY8, GRAY16, RGB8, RNG, STACK16, check, check_image, note, open_image, read

from project.data.raw.images import FileRef
from project.data.raw.lazy_image import ORIENTATION, LazyImage, errors_mention
from project.data.raw.readers import READERS
from project.errors import UserError


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"<!DOCTYPE html><html><body>Sign in</body></html>", "it begins with b'<!DOCTYPE"),
        ("a.tif", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("a.tif", bytes(range(128, 256)), "of no supported format, .*; these are .*tif"),
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
            with contextlib.suppress(UserError), errors_mention(path):
                array = read(open_image(path))
            assert array is None or np.array_equal(array, whole), f"{path.name} cut to {length} bytes"


def test_the_content_decides_on_the_format(tmp_path):
    rgb = RGB8.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "tiff.png", GRAY16)
    Image.fromarray(GRAY16).save(tmp_path / "png.tif", format="PNG")
    Image.fromarray(RGB8).save(tmp_path / "bmp.tif", format="BMP")
    Image.fromarray(RGB8).save(tmp_path / "webp.npy", format="WEBP", lossless=True)
    with (tmp_path / "npy.tiff").open("wb") as file:
        np.save(file, GRAY16)
    tifffile.imwrite(tmp_path / "scan.tif", GRAY16)
    (tmp_path / "scan.tif").rename(tmp_path / "scan.svs")
    kinds = {"tiff.png": ".tif", "png.tif": ".png", "bmp.tif": ".bmp", "webp.npy": ".webp", "npy.tiff": ".npy"}
    for name, kind in kinds.items():
        check(tmp_path / name, rgb if kind in (".bmp", ".webp") else GRAY16[None])
        assert note(open_image(tmp_path / name)) == f"is a {kind} file, despite its name"
    check(tmp_path / "scan.svs", GRAY16[None])
    assert note(open_image(tmp_path / "scan.svs")) == ""


def test_npy(tmp_path):
    path = tmp_path / "a.npy"
    for array in (np.asfortranarray(STACK16), STACK16.astype(">u2")):
        np.save(path, array)
        check(path, STACK16)
    np.save(path, STACK16.transpose(1, 2, 0))
    check(path, STACK16, axes="YXC")


def test_npy_with_objects_is_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"a\.npy: .*Python objects"), errors_mention(tmp_path / "a.npy"):
        open_image(tmp_path / "a.npy")


def test_the_header_of_a_stack_is_parsed_once(tmp_path, monkeypatch):
    parsed = []
    parse = tifffile.TiffFile.__init__
    monkeypatch.setattr(tifffile.TiffFile, "__init__", lambda *a, **k: (parsed.append(1), parse(*a, **k))[1])
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK16, photometric="minisblack")
    for channel in (0, 1, 2, 0):
        check_image(FileRef(path, channel=channel).open(), STACK16[channel : channel + 1])
    assert len(parsed) == 1
    tifffile.imwrite(path, STACK16[::-1], photometric="minisblack")  # the same size, another time
    check(path, STACK16[::-1])


def test_another_format_is_one_function_in_the_registry(tmp_path, monkeypatch):
    def read_raw(path: Path) -> LazyImage:
        return LazyImage.from_function(lambda: np.fromfile(path, np.uint16).reshape(3, 7, 9), axes="ZYX")

    monkeypatch.setitem(READERS, ".raw", read_raw)
    STACK16.tofile(tmp_path / "a.RAW")
    (sample,) = find(tmp_path, "{id}.raw", pages={"Z": "max"})
    check_image(sample.images["image"][0].open(), STACK16.max(0)[None])


def test_a_suffix_that_is_added_may_share_a_reader(tmp_path, monkeypatch):
    monkeypatch.setitem(READERS, ".pgm", READERS[".png"])
    (tmp_path / "a.pgm").write_bytes(b"P5 3 2 255 " + bytes(range(6)))
    check(tmp_path / "a.pgm", np.arange(6, dtype=np.uint8).reshape(1, 2, 3))


# PNG, JPEG and other pictures ----------------------------------------------------------------------------------------


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_gray_pictures(tmp_path):
    for name, array in (("a8.png", GRAY8), ("a16.png", GRAY16), ("a.bmp", GRAY8)):
        Image.fromarray(array).save(tmp_path / name)
        check(tmp_path / name, array[None])
    Image.fromarray(GRAY8 > 99).save(tmp_path / "a.png")  # 0 and 1
    check(tmp_path / "a.png", (GRAY8 > 99).astype(np.uint8)[None])


def test_png_of_few_bits_is_not_stretched(tmp_path):
    header = struct.pack(">IIBBBBB", 8, 1, 4, 0, 0, 0, 0)  # 8 x 1 pixels of 4 bits, which Pillow does not write
    data = zlib.compress(bytes([0, 0x01, 0x23, 0xAF, 0x74]))
    parts = png_chunk(b"IHDR", header), png_chunk(b"IDAT", data), png_chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    check(tmp_path / "a.png", np.array([[[0, 1, 2, 3, 10, 15, 7, 4]]], np.uint8))


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


def test_pictures_are_not_turned_but_it_is_said(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for name in ("a.jpg", "a.png"):
        Image.fromarray(RGB8).save(tmp_path / name, exif=exif)
        assert open_image(tmp_path / name).shape == (3, 7, 9)
        assert "orientation 6" in note(open_image(tmp_path / name))
    exif[ORIENTATION] = 1
    Image.fromarray(RGB8).save(tmp_path / "a.jpg", exif=exif)
    assert note(open_image(tmp_path / "a.jpg")) == ""
