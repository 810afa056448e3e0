"""TIFF files: which of their pages are the image, and what they declare about its values."""

import math
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from project.data.raw.interpretation import (
    ORIENTATION,
    inverted,
    nodata_value,
    not_turned,
    notes,
    refuse_colours,
    with_colours,
)
from project.data.raw.lazy import LazyArray, decoded, stored
from project.data.raw.segments import segments
from project.errors import UserError

# Values of PhotometricInterpretation.
WHITE_IS_ZERO, PALETTE, YCBCR, READ = 0, 3, 6, {0, 1, 2, 3, 4, 6}
JPEG = {6, 7, 34892, 33007}  # compressions of which the decoder makes RGB from YCbCr
ALPHA = {1, 2}  # values of ExtraSamples: associated and unassociated alpha
PHOTOMETRIC, GDAL_NODATA = 262, 42113  # tags
REDUCED, OF_VALIDITY = 1, 4  # bits of NewSubfileType
MAX_FLAGS_READ = 256  # pages of longer stacks are alike, as tifffile has checked
# Names that OME-TIFF and slide scanners give to images beside the one that was acquired.
ASIDE = {"label", "macro", "thumbnail", "overview", "preview", "map"}


def tiff_array(path: Path) -> LazyArray:
    """The one image of a TIFF file, which may be a stack of pages; colours are the axis C.

    Pages that are reduced copies or masks (NewSubfileType) are no further images. A mask of validity, as GDAL writes
    it, becomes `LazyArray.valid`.

    Raises:
        UserError: The file is cut off, lacks planes, holds no image or several, or colours that are not read.
    """
    with tifffile.TiffFile(path) as tiff:  # by its path: other files of a set are found beside it
        try:
            series = _image_series(tiff)
        except IndexError as error:
            raise UserError(f"the metadata of the file promise more than its {len(tiff.pages)} pages") from error
        _check_complete(tiff, series)
        array = _interpreted(_lazy(path, tiff, _image_series), series.keyframe, bool(tiff.is_imagej))
        told = [array.note, *_metadata_notes(tiff, series)]
        if mask := _mask_series(tiff):
            size = tuple(n for n, axis in zip(array.shape, array.axes, strict=True) if axis in "YX")
            if mask.shape == size and len(series.pages) == 1:
                array = replace(array, valid=_lazy(path, tiff, _required_mask).take)
            else:
                told.append("has masks of validity that are not used: they are for a single page of the same size")
    return replace(array, note=notes(told))


def _lazy(
    path: Path, tiff: tifffile.TiffFile, find: Callable[[tifffile.TiffFile], tifffile.TiffPageSeries]
) -> LazyArray:
    """Pages of the file as they are stored; `find` gives them, here and again when they are decoded as a whole."""
    series = find(tiff)
    shape, dtype, axes = tuple(series.shape), np.dtype(series.dtype), series.axes
    ones = "".join(name for name in _unsqueezed_axes(tiff, series) if name not in axes + "S")

    def decode() -> np.ndarray:
        with tifffile.TiffFile(path) as again:
            return find(again).asarray()

    take, cuts = decoded(shape, decode), tuple[int, ...]()
    if series.dataoffset is not None and series.transform is None:
        dtype = dtype.newbyteorder(tiff.byteorder)
        take, cuts = stored(path, dtype, shape, series.dataoffset), tuple(range(len(shape)))
    elif pages := segments(path, tiff, series):
        take, cuts = pages.take, pages.cuts
    if "C" in axes or "S" not in axes:
        return LazyArray(shape, dtype, axes, take, cuts, ones)
    return LazyArray(shape, dtype, axes.replace("S", "C"), take, cuts, ones, has_colours=True)


def _unsqueezed_axes(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> str:
    """Names of the axes, those of length 1 included; tifffile has another way to ask for them since 2026.5.2."""
    if hasattr(series, "get_axes"):
        return str(series.get_axes(squeeze=False))
    unsqueezed: Any = tiff.series
    pairs = zip(tiff.series, unsqueezed(squeeze=False), strict=True)
    return next((str(full.axes) for squeezed, full in pairs if squeezed is series), series.axes)


def _image_series(tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The one series that is the image.

    Raises:
        UserError: There is none, or there are several, or planes are missing.
    """
    if not (everything := _all_series(tiff)):
        raise UserError("the TIFF file holds no image")
    found = [part for series in everything if (part := _part(series, lambda flags: not flags))] or everything
    if len(found) > 1:  # a set of files, one for each position, names all in each
        found = [series for series in found if any(page and page.parent is tiff for page in series.pages)] or found
        found = [series for series in found if not ASIDE.intersection(series.name.lower().split())] or found
    if len(found) > 1:
        told = ", ".join(f"{' x '.join(map(str, series.shape))} {series.dtype}" for series in found[:4])
        raise UserError(f"the TIFF file holds {len(found)} separate images ({told}); save one file per image")
    _check_planes(tiff, found[0])
    return found[0]


def _all_series(tiff: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    try:
        return list(tiff.series)
    except RuntimeError:  # tifffile takes long stacks for uniform by a few of their pages
        tiff.is_uniform = False
        return list(tiff.series)


def _mask_series(tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries | None:
    """The mask of validity, where there is one beside the image."""
    masks = [part for series in tiff.series if (part := _part(series, lambda flags: flags == OF_VALIDITY))]
    has_image = any(_part(series, lambda flags: not flags) for series in tiff.series)
    return masks[0] if masks and has_image else None


def _required_mask(tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    if (mask := _mask_series(tiff)) is None:
        raise UserError("the file was written again after it was opened")
    return mask


def _part(series: tifffile.TiffPageSeries, wanted: Callable[[int], bool]) -> tifffile.TiffPageSeries | None:
    """The pages of a series with these flags: the series itself where it is all, None where it is none."""
    pages = list(series.pages) if len(series.pages) <= MAX_FLAGS_READ else [series.keyframe]
    is_plain = series.kind in ("uniform", "generic")  # a page of its own for each; others may be in other files
    flags = [_flags(page.aspage() if is_plain and page is not None else series.keyframe) for page in pages]
    chosen = [page for page, flag in zip(pages, flags, strict=True) if wanted(flag)]
    if len(chosen) in (0, len(pages)):
        return series if chosen else None
    key = next(page.keyframe for page in chosen if page is not None)
    assert isinstance(key, tifffile.TiffPage)
    shape, axes = (key.shape, key.axes) if len(chosen) == 1 else ((len(chosen), *key.shape), f"I{key.axes}")
    return tifffile.TiffPageSeries(chosen, shape, key.dtype, axes)


def _flags(page: tifffile.TiffPage) -> int:
    """Whether a page is a reduced copy, a mask of validity, or both."""
    return int(page.subfiletype) & (REDUCED | OF_VALIDITY)


def _check_planes(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    """Refuse a file whose metadata promise other planes than it holds: tifffile would fill in black ones."""
    n_planes = math.prod(series.shape) // max(series.keyframe.size, 1)
    there = sum(page is not None for page in series.pages)
    if series.dataoffset is None and there != n_planes:
        folder = Path(tiff.filehandle.dirname)
        names = dict.fromkeys(re.findall(r'FileName="([^"]+)"', tiff.ome_metadata or ""))
        absent = [name for name in names if not (folder / name).is_file()]
        why = "was the recording stopped early?" if there < n_planes else "save it with metadata that fit"
        why = f"not there: {', '.join(absent[:3])}" if absent else why
        raise UserError(f"the metadata of the file promise {n_planes} planes, and {there} are there; {why}")
    promised = [math.prod(each["shape"]) for each in tiff.shaped_metadata or () if "shape" in each]
    if series.kind == "shaped" and (_n_lost(tiff) or math.prod(series.shape) not in promised):
        raise UserError(f"the metadata of the file do not fit its {len(tiff.pages)} pages; save it again")
    if series.kind in ("uniform", "generic") and tiff.is_imagej:
        raise UserError(f"the metadata of ImageJ promise more than the {len(tiff.pages)} pages of the file")


def _n_lost(tiff: tifffile.TiffFile) -> int:
    """Number of pages that are in no series."""
    levels = [level for series in tiff.series for level in series.levels if not level.keyframe.is_subifd]
    return max(len(tiff.pages) - sum(math.prod(level.shape) // max(level.keyframe.size, 1) for level in levels), 0)


def _metadata_notes(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> list[str]:
    """What is in the file and is not used."""
    found = []
    aside = [other.name for other in tiff.series if ASIDE.intersection(other.name.lower().split())]
    if aside and series.name not in aside:
        found.append(f"holds further images that are not read: {', '.join(aside)}")
    if tiff.is_ome and series.kind in ("uniform", "generic"):
        found.append("has OME metadata that are not used (they cannot be read, or are in another file)")
    if lost := _n_lost(tiff):
        found.append(f"has {lost} of {len(tiff.pages)} pages that its metadata do not name, and that are not read")
    unflagged = [level for level in series.levels[1:] if not _flags(level.keyframe)]
    if unflagged:
        found.append(f"holds {len(unflagged)} smaller images, which are taken for reduced copies")
    if _flags(series.keyframe) == REDUCED:
        found.append("says that it is a reduced copy of another image")
    return found


def _interpreted(array: LazyArray, key: tifffile.TiffPage, is_imagej: bool) -> LazyArray:
    """The array with what the tags of its pages declare.

    Raises:
        UserError: Its colours are not read.
    """
    kind, note = _photometric(key), not_turned(key.tags.valueof(ORIENTATION, 1))
    nodata, told = nodata_value(key.tags.valueof(GDAL_NODATA), array.dtype)
    extra = tuple(key.extrasamples)
    has_alpha = len(extra) == 1 and extra[0] in ALPHA
    array = replace(array, nodata=nodata, alpha=has_alpha, note=notes([note, told, _missing_segments(key, nodata)]))
    if kind == WHITE_IS_ZERO and key.bitspersample == 1 and str(key.software).startswith("tifffile"):
        note = "says that 0 is white, as tifffile writes it for every boolean array; the values are kept"
        array = replace(array, note=notes([array.note, note]))
    elif kind == WHITE_IS_ZERO:
        if key.samplesperpixel > 1:
            refuse_colours(f"0 is white, {key.samplesperpixel} channels")
        array = inverted(array, int(key.bitspersample))
    if kind == PALETTE and key.colormap is not None:
        array = with_colours(array, _palette(key.colormap, array.dtype), is_imagej)
    return array


def _photometric(key: tifffile.TiffPage) -> int:
    """PhotometricInterpretation, where the pixels that are decoded are grey, RGB or indices."""
    kind = int(key.photometric) if key.photometric or PHOTOMETRIC in key.tags else 1  # by default 0 is black
    to_rgb = key.compression in JPEG and key.planarconfig == 1 and not key.extrasamples
    if kind not in READ or (kind == YCBCR and not to_rgb):
        refuse_colours(getattr(tifffile.PHOTOMETRIC(kind), "name", str(kind)) if kind != 5 else "CMYK")
    return kind


def _palette(colormap: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """(K, 3) uint8, or uint16 where the indices are; some software writes 8-bit colours into the 16-bit tag."""
    colours = np.asarray(colormap, np.uint16).T
    if dtype.itemsize > 1:
        return colours
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)


def _missing_segments(key: tifffile.TiffPage, nodata: float | int | None) -> str:
    missing = sum(not (start and n) for start, n in zip(key.dataoffsets, key.databytecounts, strict=True))
    if not missing or nodata is not None:
        return ""
    return f"lacks {missing} of {len(key.dataoffsets)} strips or tiles, which are read as 0"


def _check_complete(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    """Refuse a file that was cut off: tifffile would give the pages that are left, or half of a JPEG page."""
    file, layout, last = tiff.filehandle, tiff.tiff, tiff.pages[-1].offset
    file.seek(last)
    (n_tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(last + layout.tagnosize + n_tags * layout.tagsize)
    ends = list(struct.unpack(layout.offsetformat, file.read(layout.offsetsize)))  # of the next page, or 0
    if series.dataoffset is not None:
        ends.append(series.dataoffset + series.nbytes)
        if len(tiff.pages) > 1 and series.dataoffset < tiff.pages[1].offset < ends[-1]:
            raise UserError("the metadata of the file promise more planes than lie in one piece; save it again")
    else:
        for page in series.pages:
            if page is not None and page.parent is tiff:
                ends += [start + n for start, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if max(ends) > file.size:
        raise UserError(f"the file is cut off: it has {file.size} bytes and points to byte {max(ends)}")
