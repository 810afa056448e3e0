"""TIFF files: which of their pages are the image, what they declare about its values, and windows of them."""

import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile

from project.data.raw.lazy_image import (
    ORIENTATION,
    Index,
    LazyImage,
    inverted,
    orientation_note,
    read_whole,
    refuse_colors,
    with_nodata,
    with_palette,
)
from project.errors import UserError

# Values of PhotometricInterpretation.
WHITE_IS_ZERO, PALETTE, YCBCR, SUPPORTED = 0, 3, 6, {0, 1, 2, 3, 4, 6}
JPEG = {6, 7, 34892, 33007}  # compressions of which the decoder makes RGB from YCbCr
NOT_SEGMENTED = {65000, 65001, 65002}  # compressions of electron event counts, which tifffile decodes by pages
ALPHA = {1, 2}  # values of ExtraSamples: associated and unassociated alpha
PHOTOMETRIC, GDAL_NODATA = 262, 42113  # tags
REDUCED, OF_VALIDITY = 1, 4  # bits of NewSubfileType
MAX_FLAGS_READ = 256  # pages of longer stacks are alike, as tifffile has checked
# Names that OME-TIFF and slide scanners give to images beside the one that was acquired.
SIDE_IMAGES = {"label", "macro", "thumbnail", "overview", "preview", "map"}


def read_tiff(path: Path) -> LazyImage:
    """The one image of a TIFF file, which may be a stack of pages; colors are the axis C.

    Pages that are reduced copies or masks of validity (NewSubfileType) are not further images. A file that is cut off,
    lacks planes or holds several images is refused.
    """
    with tifffile.TiffFile(path) as tiff:  # by its path: other files of a set are found beside it
        try:
            series = _image_series(tiff)
        except IndexError as error:
            raise UserError(f"the metadata of the file promise more than its {len(tiff.pages)} pages") from error
        _check_complete(tiff, series)
        image = _with_declarations(_pixels(path, tiff, series), series.keyframe, bool(tiff.is_imagej))
        return image.with_notes(*_metadata_notes(tiff, series))


def _pixels(path: Path, tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> LazyImage:
    """The image as it is stored."""
    shape, dtype, axes = tuple(series.shape), np.dtype(series.dtype), series.axes
    pages = [page for page in series.pages if page is not None and page.parent is tiff and page.keyframe]

    def load() -> np.ndarray:
        with tifffile.TiffFile(path) as reopened:
            return _image_series(reopened).asarray()

    read, reads_rows = read_whole(shape, dtype, load), False
    if series.dataoffset is not None and series.transform is None:  # uncompressed in one piece
        stored, offset = dtype.newbyteorder(tiff.byteorder), series.dataoffset
        read, reads_rows = lambda index: np.array(np.memmap(path, stored, "r", offset, shape)[index]), True
    elif _is_segmented(series, pages):
        read = _row_reader(path, series, pages)
        reads_rows = _segment_size(series.keyframe)[0] < series.keyframe.imagelength
    if has_colors := "S" in axes and "C" not in axes:
        axes = axes.replace("S", "C")
    return LazyImage(shape, dtype, axes, read, reads_rows, has_colors=has_colors)


def _is_segmented(series: tifffile.TiffPageSeries, pages: Sequence[tifffile.TiffPage | tifffile.TiffFrame]) -> bool:
    """Whether all strips and tiles of a series, in `pages` of this file, can be decoded alone."""
    key, n_lead = series.keyframe, len(series.shape) - len(series.keyframe.shape)
    return (
        series.transform is None
        and tuple(series.shape[n_lead:]) == tuple(key.shape)
        and math.prod(series.shape[:n_lead]) == len(pages) == len(series.pages)
        and all(page.hash == key.hash for page in pages)
        and key.compression not in NOT_SEGMENTED
        and key.jpegheader is None
        and key.imagedepth == 1
        and "Y" in key.axes
    )


def _row_reader(
    path: Path, series: tifffile.TiffPageSeries, pages: Sequence[tifffile.TiffPage | tifffile.TiffFrame]
) -> Callable[[Index], np.ndarray]:
    """Function that decodes the strips or tiles of the needed rows.

    The decoder of tifffile, `TiffPage.decode`, does not need the open file.
    """
    key, n_lead = series.keyframe, len(series.shape) - len(series.keyframe.shape)
    numbers, y_axis = np.arange(len(pages)).reshape(series.shape[:n_lead]), key.axes.index("Y")
    tables = [(page.dataoffsets, page.databytecounts, page.jpegtables) for page in pages]
    (n_planes, _, height, width, n_samples), dtype, fill = key.shaped, np.dtype(series.dtype), key.nodata
    n_rows, n_columns = _segment_size(key)
    decode, page_shape = key.decode, list(key.shape)
    grid = (n_planes, -(-height // n_rows), -(-width // n_columns))
    segments = np.arange(math.prod(grid)).reshape(grid)

    def read_rows(number: int, rows: slice) -> np.ndarray:
        offsets, counts, jpegtables = tables[number]
        options = {"jpegtables": jpegtables} if jpegtables else {}
        pixels = np.full((n_planes, rows.stop - rows.start, width, n_samples), fill, dtype)
        in_rows = segments[:, rows.start // n_rows : -(-rows.stop // n_rows)].ravel().tolist()
        needed = [i for i in in_rows if offsets[i] and counts[i]]  # the file may lack others
        with tifffile.FileHandle(path) as file:
            for data, i in file.read_segments([offsets[i] for i in needed], [counts[i] for i in needed], needed):
                segment, (plane, _, y, x, _), (_, h, w, _) = decode(data, i, **options)
                assert segment is not None
                top, bottom, right = max(y, rows.start), min(y + h, rows.stop), min(x + w, width)
                part = segment[0, top - y : bottom - y, : right - x]
                pixels[plane, top - rows.start : bottom - rows.start, x:right] = part
        return pixels.reshape([*page_shape[:y_axis], -1, *page_shape[y_axis + 1 :]])

    def read(index: Index) -> np.ndarray:
        chosen, inside = numbers[index[:n_lead]], list(index[n_lead:])
        rows, inside[y_axis] = inside[y_axis], slice(None)
        parts = [read_rows(int(number), rows)[tuple(inside)] for number in chosen.flat]
        return np.stack(parts).reshape(chosen.shape + parts[0].shape)

    return read


def _segment_size(key: tifffile.TiffPage) -> tuple[int, int]:
    """Rows and columns of a tile or strip."""
    return (key.tilelength, key.tilewidth) if key.is_tiled else (key.rowsperstrip, key.imagewidth)


def _image_series(tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The one series that is the image, with all its planes."""
    try:
        all_series = list(tiff.series)
    except RuntimeError:  # tifffile takes long stacks for uniform by a few of their pages
        tiff.is_uniform = False
        all_series = list(tiff.series)
    if not all_series:
        raise UserError("the TIFF file holds no image")
    images = [series for series in all_series if not _flags(series.keyframe)] or all_series
    if len(images) > 1:  # a set of files, one for each position, names all in each
        images = [series for series in images if any(page and page.parent is tiff for page in series.pages)] or images
        images = [series for series in images if not SIDE_IMAGES.intersection(series.name.lower().split())] or images
    if len(images) > 1:
        sizes = ", ".join(f"{' x '.join(map(str, series.shape))} {series.dtype}" for series in images[:4])
        raise UserError(f"the TIFF file holds {len(images)} separate images ({sizes}); save one file per image")
    _check_planes(tiff, images[0])
    return images[0]


def _flags(page: tifffile.TiffPage) -> int:
    """Whether a page is a reduced copy, a mask of validity, or both."""
    return int(page.subfiletype) & (REDUCED | OF_VALIDITY)


def _check_planes(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    """Refuse a file whose metadata promise other planes than it holds: tifffile would fill in black ones."""
    n_planes = math.prod(series.shape) // max(series.keyframe.size, 1)
    n_pages = sum(page is not None for page in series.pages)
    if series.dataoffset is None and n_pages != n_planes:
        folder = Path(tiff.filehandle.dirname)
        names = dict.fromkeys(re.findall(r'FileName="([^"]+)"', tiff.ome_metadata or ""))
        absent = [name for name in names if not (folder / name).is_file()]
        cause = "was the recording stopped early?" if n_pages < n_planes else "save it with metadata that fit"
        cause = f"missing files: {', '.join(absent[:3])}" if absent else cause
        raise UserError(f"the metadata of the file promise {n_planes} planes, but it has {n_pages}; {cause}")
    promised = [math.prod(metadata["shape"]) for metadata in tiff.shaped_metadata or () if "shape" in metadata]
    if series.kind == "shaped" and (_n_unused_pages(tiff) or math.prod(series.shape) not in promised):
        raise UserError(f"the metadata of the file do not fit its {len(tiff.pages)} pages; save it again")
    is_plain = series.kind in ("uniform", "generic")  # one page each in this file
    flags = {_flags(page.aspage()) for page in series.pages[:MAX_FLAGS_READ] if page is not None} if is_plain else ()
    if len(flags) > 1:
        raise UserError("the file mixes an image with reduced copies or masks of the same shape; save the image alone")
    if is_plain and tiff.is_imagej:
        raise UserError(f"the metadata of ImageJ promise more than the {len(tiff.pages)} pages of the file")


def _check_complete(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    """Refuse a file that was cut off: tifffile would return the pages that are left, or half of a JPEG page."""
    file, layout, last = tiff.filehandle, tiff.tiff, tiff.pages[-1].offset
    file.seek(last)
    (n_tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(last + layout.tagnosize + n_tags * layout.tagsize)
    ends = list(struct.unpack(layout.offsetformat, file.read(layout.offsetsize)))  # of the next page, or 0
    if series.dataoffset is not None:
        ends.append(series.dataoffset + series.nbytes)
        if len(tiff.pages) > 1 and series.dataoffset < tiff.pages[1].offset < ends[-1]:
            raise UserError("the metadata of the file promise more planes than it holds in one piece; save it again")
    else:
        for page in series.pages:
            if page is not None and page.parent is tiff:
                ends += [start + n for start, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if max(ends) > file.size:
        raise UserError(f"the file is cut off: it has {file.size} bytes and points to byte {max(ends)}")


def _n_unused_pages(tiff: tifffile.TiffFile) -> int:
    """Number of pages that are in no series."""
    levels = [level for series in tiff.series for level in series.levels if not level.keyframe.is_subifd]
    return max(len(tiff.pages) - sum(math.prod(level.shape) // max(level.keyframe.size, 1) for level in levels), 0)


def _metadata_notes(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> list[str]:
    """What is in the file and is not used."""
    notes = []
    side_images = [other.name for other in tiff.series if SIDE_IMAGES.intersection(other.name.lower().split())]
    if side_images and series.name not in side_images:
        notes.append(f"holds further images that are not read: {', '.join(side_images)}")
    if any(_flags(other.keyframe) & OF_VALIDITY for other in tiff.series if other is not series):
        notes.append("has a mask of validity, which is not used")
    if tiff.is_ome and series.kind in ("uniform", "generic"):
        notes.append("has OME metadata that are not used (they cannot be read, or are in another file)")
    if n_unused := _n_unused_pages(tiff):
        notes.append(f"has {n_unused} of {len(tiff.pages)} pages that its metadata do not name, and that are not read")
    if unflagged := [level for level in series.levels[1:] if not _flags(level.keyframe)]:
        notes.append(f"holds {len(unflagged)} smaller images, which are taken for reduced copies")
    return notes


def _with_declarations(image: LazyImage, key: tifffile.TiffPage, is_imagej: bool) -> LazyImage:
    """The image with what the tags of its pages declare."""
    kind, extra = _photometric(key), tuple(key.extrasamples)
    image = replace(image, alpha=len(extra) == 1 and extra[0] in ALPHA)
    image = with_nodata(image, key.tags.valueof(GDAL_NODATA))
    n_missing = sum(not (start and n) for start, n in zip(key.dataoffsets, key.databytecounts, strict=True))
    missing = f"lacks {n_missing} of {len(key.dataoffsets)} strips or tiles, which are read as 0"
    missing = missing if n_missing and GDAL_NODATA not in key.tags else ""
    image = image.with_notes(orientation_note(key.tags.valueof(ORIENTATION, 1)), missing)
    if kind == WHITE_IS_ZERO and key.bitspersample == 1 and str(key.software).startswith("tifffile"):
        image = image.with_notes("says that 0 is white, as tifffile writes it for every boolean array; values are kept")
    elif kind == WHITE_IS_ZERO:
        if key.samplesperpixel > 1:
            refuse_colors(f"0 is white, {key.samplesperpixel} channels")
        image = inverted(image, int(key.bitspersample))
    if kind == PALETTE and key.colormap is not None:
        # (K, 3) uint8, or uint16 where the indices are; some software writes 8-bit colors into the 16-bit tag.
        colors = np.asarray(key.colormap, np.uint16).T
        if image.dtype.itemsize == 1:
            colors = (colors >> 8 if colors.max() > 255 else colors).astype(np.uint8)
        image = with_palette(image, colors, is_imagej)
    return image


def _photometric(key: tifffile.TiffPage) -> int:
    """PhotometricInterpretation, where the decoded pixels are gray, RGB or indices."""
    kind = int(key.photometric) if key.photometric or PHOTOMETRIC in key.tags else 1  # by default 0 is black
    is_made_rgb = key.compression in JPEG and key.planarconfig == 1 and not key.extrasamples
    if kind not in SUPPORTED or (kind == YCBCR and not is_made_rgb):
        refuse_colors(getattr(tifffile.PHOTOMETRIC(kind), "name", str(kind)) if kind != 5 else "CMYK")
    return kind
