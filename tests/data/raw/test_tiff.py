"""TIFF files in the layouts of microscopes and slide scanners: whole, in bands, by channel."""

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from raw_images import GRAY8, GRAY16, RGB8, RNG, STACK16, check, check_image, note, open_image, read

from project.data.raw.images import FileRef
from project.data.raw.lazy_image import plain_dtype
from project.errors import UserError

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
    "predictor": {"compression": "zlib", "predictor": True},
}


@pytest.mark.parametrize(
    ("array", "options", "expected"),
    [
        pytest.param(GRAY16, {}, GRAY16[None], id="YX"),
        pytest.param(STACK16, {"photometric": "minisblack"}, STACK16, id="pages"),
        pytest.param(STACK16, {"imagej": True, "metadata": {"axes": "CYX"}}, STACK16, id="CYX-imagej"),
        pytest.param(STACK16[:, None], {"ome": True, "metadata": {"axes": "CZYX"}}, STACK16, id="singleton-ome"),
        pytest.param(GRAY16[:1], {}, GRAY16[None, :1], id="one-row-high"),
        pytest.param(RGB8, {"photometric": "rgb"}, RGB8.transpose(2, 0, 1), id="YXS-rgb"),
        pytest.param(STACK16, {"byteorder": ">", "photometric": "minisblack"}, STACK16, id="big-endian"),
        pytest.param(STACK16, {"bigtiff": True, "photometric": "minisblack"}, STACK16, id="bigtiff"),
        pytest.param(GRAY8 > 99, {}, (GRAY8 > 99).astype(np.uint8)[None], id="bits"),
    ],
)
def test_tiff(tmp_path, array, options, expected):
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    check(tmp_path / "a.tif", expected)


def write_pages(path: Path, *pages: tuple[np.ndarray, dict[str, Any]], description: str | None = None) -> None:
    """Pages one by one, without metadata of tifffile."""
    with tifffile.TiffWriter(path) as tiff:
        for i, (array, options) in enumerate(pages):
            text = description.encode() if description and not i else None
            defaults = {"photometric": "minisblack", "contiguous": False}
            tiff.write(array, metadata=None, description=text, **defaults | options)


def test_reduced_copies_are_not_read(tmp_path):
    small = (GRAY16[::2, ::2], {"subfiletype": 1})
    write_pages(tmp_path / "first.tif", small, (GRAY16, {}))
    write_pages(tmp_path / "last.tif", (GRAY16, {}), small)
    write_pages(tmp_path / "main_in_subifd.tif", (GRAY16[::2, ::2], {"subfiletype": 1, "subifds": 1}), (GRAY16, {}))
    write_pages(tmp_path / "unflagged.tif", (LARGE, {}), (LARGE[::2, ::2], {}))
    for name in ("first.tif", "last.tif", "main_in_subifd.tif"):
        check(tmp_path / name, GRAY16[None])
        assert note(open_image(tmp_path / name)) == ""
    check(tmp_path / "unflagged.tif", LARGE[None])
    assert note(open_image(tmp_path / "unflagged.tif")) == "holds 1 smaller images, which are taken for reduced copies"
    write_pages(tmp_path / "each.tif", *[page for array in STACK16 for page in ((array, {}), small)])
    check(tmp_path / "each.tif", STACK16)
    stack = RNG.integers(0, 256, (12, 20, 20), np.uint8)  # tifffile looks at some pages of such a stack only
    pages = [(page[::2, ::2], {"subfiletype": 1}) if i == 5 else (page, {}) for i, page in enumerate(stack)]
    write_pages(tmp_path / "long.tif", *pages)
    check(tmp_path / "long.tif", np.delete(stack, 5, axis=0))
    write_pages(tmp_path / "mixed.tif", *((page, {"subfiletype": int(i == 5)}) for i, page in enumerate(stack)))
    with pytest.raises(UserError, match="mixes an image with reduced copies or masks of the same shape"):
        open_image(tmp_path / "mixed.tif")


@pytest.mark.parametrize(("layout", "colors"), [("strips", "grey"), ("one-strip", "contig"), ("tiles", "separate")])
def test_a_mask_of_validity_is_not_a_second_image(tmp_path, layout, colors):
    valid = np.ones((50, 70), bool)
    valid[:9, :20] = False
    image = {"grey": LARGE, "contig": LARGE_RGB, "separate": np.ascontiguousarray(LARGE_RGB.transpose(2, 0, 1))}[colors]
    options = {} if colors == "grey" else {"photometric": "rgb", "planarconfig": colors}
    mask = {"photometric": 4, "subfiletype": 4, "compression": "zlib"}
    write_pages(tmp_path / "a.tif", (image, options | LAYOUTS[layout]), (valid, mask | LAYOUTS[layout]))
    whole = LARGE[None] if colors == "grey" else LARGE_RGB.transpose(2, 0, 1)
    check(tmp_path / "a.tif", whole)
    assert note(open_image(tmp_path / "a.tif")) == "has a mask of validity, which is not used"
    write_pages(tmp_path / "mask.tif", (valid, mask))
    check(tmp_path / "mask.tif", valid[None].astype(np.uint8))  # alone it is an image


def test_several_images_of_different_shapes_are_refused(tmp_path):
    write_pages(tmp_path / "a.tif", (GRAY16, {}), *((page, {"compression": "zlib"}) for page in STACK16))
    write_pages(tmp_path / "b.tif", (GRAY16, {}), (LARGE[:20, :30], {}))
    with tifffile.TiffWriter(tmp_path / "c.ome.tif", ome=True) as tiff:
        for array in (GRAY16, GRAY16[:5]):
            tiff.write(array, metadata={"axes": "YX"})
    for name, sizes in (("a.tif", "7 x 9 uint16, 3 x 7 x 9 uint16"), ("b.tif", "20 x 30"), ("c.ome.tif", "5 x 9")):
        with pytest.raises(UserError, match=f"holds 2 separate images .*{sizes}"):
            open_image(tmp_path / name)


def test_only_the_largest_picture_of_a_slide_is_read(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(GRAY16[:5], metadata={"axes": "YX", "Name": "label image"})
        tiff.write(LARGE, subifds=1, tile=(16, 16), compression="zlib", metadata={"axes": "YX", "Name": "scan"})
        tiff.write(LARGE[::2, ::2], subfiletype=1, tile=(16, 16), compression="zlib")
        tiff.write(GRAY16, metadata={"axes": "YX", "Name": "macro image"})
    check(path, LARGE[None])
    assert open_image(path).reads_rows
    assert note(open_image(path)) == "holds further images that are not read: label image, macro image"


IMAGEJ = "ImageJ=1.53\nimages=6\nframes=6\nhyperstack=true\n"


def ome_xml(tmp_path: Path, n: int) -> str:
    tifffile.imwrite(tmp_path / "x.ome.tif", np.zeros((2, 7, 9), np.uint16), metadata={"axes": "TYX"})
    text = str(tifffile.tiffcomment(tmp_path / "x.ome.tif"))
    return text.replace('SizeT="2"', f'SizeT="{n}"').replace('PlaneCount="2"', f'PlaneCount="{n}"')


@pytest.mark.parametrize("kind", ["ome", "imagej", "shaped"])
@pytest.mark.parametrize(("n", "compression"), [(1, None), (4, "zlib")])
def test_planes_that_are_promised_and_missing_are_an_error(tmp_path, kind, n, compression):
    texts = {"ome": ome_xml(tmp_path, 6), "imagej": IMAGEJ, "shaped": '{"shape": [6, 7, 9]}'}
    pages = [(GRAY16, {"compression": compression})] * n
    write_pages(tmp_path / "a.ome.tif", *pages, description=texts[kind])
    with pytest.raises(UserError, match=r"promise|do not fit|cut off"):
        open_image(tmp_path / "a.ome.tif")


def test_pages_that_the_metadata_do_not_name_are_noted(tmp_path):
    write_pages(tmp_path / "a.ome.tif", *[(page, {}) for page in STACK16], description=ome_xml(tmp_path, 2))
    check(tmp_path / "a.ome.tif", STACK16[:2])
    assert "has 1 of 3 pages that its metadata do not name" in note(open_image(tmp_path / "a.ome.tif"))
    companion = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><BinaryOnly MetadataFile="x"/></OME>'
    write_pages(tmp_path / "b.ome.tif", *[(page, {}) for page in STACK16], description=companion)
    check(tmp_path / "b.ome.tif", STACK16)
    assert "has OME metadata that are not used" in note(open_image(tmp_path / "b.ome.tif"))


def write_set(folder: Path, *images: list[int]) -> None:
    """A file for each page of `STACK16` that the images have as their channels, all with the same OME metadata."""
    text = ""
    for i, pages in enumerate(images):
        channels = "".join(f'<Channel ID="Channel:{i}:{page}" SamplesPerPixel="1"/>' for page in pages)
        planes = "".join(
            f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{page}.ome.tif">urn:uuid:{page}</UUID>'
            "</TiffData>"
            for c, page in enumerate(pages)
        )
        text += (
            f'<Image ID="Image:{i}"><Pixels ID="Pixels:{i}" DimensionOrder="XYCZT" Type="uint16" SizeX="9" SizeY="7" '
            f'SizeC="{len(pages)}" SizeZ="1" SizeT="1">{channels}{planes}</Pixels></Image>'
        )
    for page in (page for pages in images for page in pages):
        xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{page}">{text}</OME>'
        write_pages(folder / f"{page}.ome.tif", (STACK16[page], {}), description=xml)


def test_a_set_of_files_is_read_as_one_and_no_file_of_it_may_be_missing(tmp_path):
    write_set(tmp_path, [0, 1])
    check(tmp_path / "0.ome.tif", STACK16[:2])
    file = open_image(tmp_path / "0.ome.tif")
    (tmp_path / "1.ome.tif").unlink()
    with pytest.raises(UserError, match=r"promise 2 planes, but it has 1; missing files: 1\.ome\.tif"):
        read(file)


def check_against_tifffile(path: Path, *, by_region: bool) -> None:
    """Bands are those of the whole array of tifffile; single channels too."""
    with tifffile.TiffFile(path) as tiff:
        whole, axes = tiff.series[0].asarray(), tiff.series[0].axes
    whole = whole[None] if whole.ndim == 2 else np.moveaxis(whole, -1, 0) if axes[-1] == "S" else whole
    file = open_image(path)
    check_image(file, plain_dtype(whole))
    assert file.reads_rows == by_region
    for channel in {0, len(whole) - 1}:
        check_image(FileRef(path, channel=channel).open(), plain_dtype(whole[channel : channel + 1]))


@pytest.mark.parametrize(
    ("layout", "compression", "byteorder"),
    [
        *((layout, "none", "<") for layout in LAYOUTS),
        *((layout, "deflate", ">") for layout in LAYOUTS),
        ("strips", "lzw", "<"),
        ("tiles", "predictor", ">"),
    ],
)
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
    check_against_tifffile(path, by_region=layout != "one-strip")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("array", [SMOOTH_RGB, SMOOTH_RGB[..., 0]], ids=["colour", "grey"])
def test_rows_of_jpeg_in_tiff(tmp_path, layout, array):
    options = LAYOUTS[layout] if layout != "strips" else {"rowsperstrip": 16}
    photometric = "rgb" if array.ndim == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", array, photometric=photometric, compression="jpeg", **options)
    check_against_tifffile(tmp_path / "a.tif", by_region=layout != "one-strip")


def test_missing_segments_hold_the_value_for_no_data(tmp_path):
    def tiles():
        yield b""
        yield np.full((32, 32), 7, np.uint16).tobytes()
        yield from [b""] * 4

    options: dict[str, Any] = {"shape": (50, 70), "dtype": np.uint16, "tile": (32, 32)}
    tifffile.imwrite(tmp_path / "a.tif", tiles(), **options)
    check_against_tifffile(tmp_path / "a.tif", by_region=True)
    assert "lacks 5 of 6 strips or tiles" in note(open_image(tmp_path / "a.tif"))
    tifffile.imwrite(tmp_path / "a.tif", tiles(), extratags=[(42113, "s", 0, "9", True)], **options)  # GDAL_NODATA
    file = open_image(tmp_path / "a.tif")
    assert (read(file)[0, 49, 0], note(file)) == (9, 'declares 9 as "no data"; the values are kept')


def test_a_segment_of_no_bytes_does_not_shift_those_behind_it(tmp_path):
    expected = RNG.integers(1, 256, (64, 64), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", expected, tile=(16, 16))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        counts = file.pages[0].tags["TileByteCounts"]
        counts.overwrite([0 if i == 5 else n for i, n in enumerate(counts.value)])
    expected[16:32, 16:32] = 0
    np.testing.assert_array_equal(read(open_image(tmp_path / "a.tif"))[0], expected)


def test_one_page_of_a_stack_does_not_decode_the_others(tmp_path, monkeypatch):
    stack = RNG.integers(0, 256, (40, 32, 32), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", compression="zlib", rowsperstrip=8)
    decoded = []
    assert 8 in tifffile.TIFF.DECOMPRESSORS
    monkeypatch.setitem(
        tifffile.TIFF.DECOMPRESSORS._codecs,
        8,
        lambda *args, **options: decoded.append(1) or imagecodecs.zlib_decode(*args, **options),
    )
    file = FileRef(tmp_path / "a.tif", channel=33).open()
    np.testing.assert_array_equal(read(file), stack[33:34])
    np.testing.assert_array_equal(file.rows(9, 15), stack[33:34, 9:15])
    assert len(decoded) == 4 + 1
