"""Read image files of any common kind as (C, H, W) arrays, whole or in bands of rows, without changing a value."""

import functools
import itertools
import math
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from project.errors import UserError

TIFF = {".tif", ".tiff"}
PICTURE = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
SUFFIXES = TIFF | PICTURE | {".npy"}
KINDS = {".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP"}
KINDS |= {suffix: suffix[1:].upper() for suffix in SUFFIXES - set(KINDS)}
# First bytes of each kind that is read ...
MAGIC = {
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"\x93NUMPY": "NPY",
}
# ... and of some that are taken for images.
OTHER_MAGIC = {
    b"\x89HDF": "an HDF5 file",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip file",
    b"%PDF": "a PDF file",
    b"ZISRAWFILE": "a Zeiss CZI file",
    b"\0\0\0\x0cjP": "a JPEG 2000 file",
    b"version https://git-lfs": "a pointer of Git LFS, to be fetched with `git lfs pull`",
}
# PIL modes whose arrays hold the very numbers of the file; "P" gives the palette index: the class, for a mask.
FAITHFUL_MODES = {"1", "L", "P", "LA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L", "F"}
EXACT_IN_FLOAT32 = 2**24
# Compressions whose pages tifffile does not decode segment by segment: electron event counts.
NOT_SEGMENTED = {65000, 65001, 65002}
# A file may be written again within one tick of the clock that stamps it: headers of files so young are not remembered.
YOUNG = 2.0  # seconds
ORIENTATION = 274  # the EXIF and TIFF tag
# Pillow refuses pictures of more than 179 megapixels as attacks; these are the user's own, and whole slides are larger.
Image.MAX_IMAGE_PIXELS = None

Index = tuple[int | slice, ...]
Pages = tuple[tuple[str, str | int], ...]


@dataclass(frozen=True)
class ImageFile:
    """What the header says, and how to read the rest.

    Attributes:
        shape: (C, H, W); pages of a stack count as channels.
        dtype: As it will be returned: uint8, uint16 or float32.
        read: `read(y0, y1)` returns the rows y0 to y1 as a contiguous (C, y1 - y0, W) array of that dtype.
        by_region: Whether rows are read without decoding the rest of the file.
        palette: (256, 3) uint8, the colours of a picture whose values are places in a palette.
        alpha: Whether the last channel is known to be transparency.
        note: What the user should know about the file, such as "is a JPEG file, whatever its name says".
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]
    by_region: bool = False
    palette: np.ndarray | None = None
    alpha: bool = False
    note: str = ""

    @classmethod
    def of(cls, load: Callable[[], np.ndarray]) -> "ImageFile":
        """The image that a function gives.

        Args:
            load: Returns (H, W) or (C, H, W), in any dtype that `plain_dtype` takes. It is called once here, for shape
                and dtype, and again each time rows are read.

        Raises:
            UserError: The array has another number of axes, no pixels, or values that cannot be kept.
        """

        def whole() -> np.ndarray:
            array = np.asarray(load())
            if array.ndim not in (2, 3) or 0 in array.shape:
                raise UserError(f"the array of shape {array.shape} is no image of shape (H, W) or (C, H, W)")
            return plain_dtype(array if array.ndim == 3 else array[None])

        def read(y0: int, y1: int) -> np.ndarray:
            array = whole()
            if (array.shape, array.dtype) != (shape, dtype):
                raise UserError(
                    f"the array was {dtype} {shape} when first loaded, now it is {array.dtype} {array.shape}"
                )
            return np.ascontiguousarray(array[:, _rows(y0, y1, shape[1])])

        first = whole()
        shape, dtype = first.shape, first.dtype
        del first  # not kept alive by `read`
        return cls((shape[0], shape[1], shape[2]), dtype, read)


@dataclass(frozen=True)
class FileRef:
    """An image in a file: what of it is taken, and as what.

    Attributes:
        path: The file.
        axes: See `open_image`.
        pages: See `open_image`.
        channel: The one channel that is taken, counted from 0 in what `pages` leaves; None for all.
        convert: See `converted`; done last.
    """

    path: Path
    axes: str | None = None
    pages: Pages | None = None
    channel: int | None = None
    convert: Literal["rgb", "grey"] | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def open(self) -> ImageFile:
        """Read the header; raises what `open_image` and `converted` raise, and for a channel that is not there."""
        file = _arranged(_header(self.path), self.axes, self.pages, self.channel)
        return converted(file, self.convert) if self.convert else file

    def __str__(self) -> str:
        return str(self.path)


def open_image(path: Path, axes: str | None = None, pages: Pages | None = None) -> ImageFile:
    """Read the header of an image file.

    The kind is told by the content; a name that says otherwise gives a note. The values are those that are stored: no
    picture is turned as its EXIF orientation asks (there is a note), no colours or gammas are applied. Rows of TIFF
    (in strips or tiles) and NPY files are read alone, pictures of other kinds as a whole.

    Args:
        path: A TIFF, PNG, JPEG, BMP, GIF, WebP or NPY file.
        axes: Order of the axes in the file, as "CYX" or "YXC"; by default what the file itself says, and "CYX" for
            NPY, which does not say. A plain 2-D file needs none.
        pages: What becomes of the axes other than Y and X, as (("T", 3), ("C", "channels"), ("Z", "max")): one may be
            "channels"; of the others a position is taken, counted from 0, or the "max" or "mean", in the order in
            which they stand here. Means are taken in float64, and rounded at the end for integers. Axes of length 1
            may be left out. By default the only further axis is the channels.

    Raises:
        UserError: The kind of file is not known, or its axes or values do not fit a 2-D image with channels.
        Exception: The file cannot be read; see `naming`.
    """
    return _arranged(_header(path), axes, pages)


def axis_sizes(path: Path, axes: str | None = None) -> dict[str, int]:
    """The axes of a file other than Y and X, and their lengths, where these are more than 1.

    Args:
        path: See `open_image`.
        axes: See `open_image`.

    Returns:
        In the order of the file, such as {"T": 10, "C": 2}; {"C": 3} for colour; {} for a plain image.

    Raises:
        UserError: As for `open_image`, and for axes whose names the file does not tell apart.
    """
    raw = _header(path)
    names = _axes(raw, axes)
    sizes = {name: n for name, n in zip(names, raw.shape, strict=True) if n > 1 and name not in "YX"}
    if any(names.count(name) > 1 for name in sizes):
        raise UserError(_unnamed(raw.shape, names))
    return sizes


def converted(file: ImageFile, kind: Literal["rgb", "grey"]) -> ImageFile:
    """The image in one kind, whatever it was saved as, in the dtype of the file.

    Args:
        file: 1 channel (grey or a palette), 3 (colour), either with alpha, which is dropped.
        kind: "rgb" repeats grey three times; "grey" is the plain mean of red, green and blue, rounded for integers.

    Returns:
        (3, H, W) or (1, H, W).

    Raises:
        UserError: The file has another number of channels.
    """
    n_channels, height, width = file.shape
    if n_channels not in (1, 3, 4) and not (n_channels == 2 and file.alpha):
        raise UserError(f"an image of {n_channels} channels is neither grey nor colour; `convert` cannot be used")

    def read(y0: int, y1: int) -> np.ndarray:
        array = file.read(y0, y1)
        if file.palette is not None:
            array = file.palette[array[0]].transpose(2, 0, 1)
        array = array[: 3 if len(array) >= 3 else 1]
        if kind == "rgb":
            return np.ascontiguousarray(np.broadcast_to(array, (3, *array.shape[1:])))
        if len(array) == 1:
            return np.ascontiguousarray(array)
        mean = array.mean(axis=0, dtype=np.float64, keepdims=True)
        return (np.rint(mean) if array.dtype.kind == "u" else mean).astype(array.dtype)

    return replace(file, shape=(3 if kind == "rgb" else 1, height, width), read=read, palette=None, alpha=False)


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Turn whatever happens while a file is opened or read into a `UserError` that names the file.

    Decoders raise whatever the bytes bring them to: ZeroDivisionError, TokenError and struct.error were all seen.

    Args:
        path: The file, or whatever else `str` turns into a name.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(f"{path}: cannot be read: {str(error) or type(error).__name__}") from error


def plain_dtype(array: np.ndarray) -> np.ndarray:
    """The array as uint8, uint16 or float32, contiguous and in native byte order.

    bool becomes uint8; float16 and float64 become float32; wider and signed integers become float32 where that is
    exact.

    Raises:
        UserError: Another dtype, or integers beyond 2**24 which float32 cannot hold.
    """
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b" or (kind == "u" and size <= 2):
        return np.ascontiguousarray(array, dtype=np.uint16 if size == 2 else np.uint8)
    if kind in "iu":
        if array.size and max(abs(int(array.min())), abs(int(array.max()))) > EXACT_IN_FLOAT32:
            raise UserError(f"{array.dtype} values beyond {EXACT_IN_FLOAT32} cannot be kept exactly; rescale the files")
        return np.ascontiguousarray(array, dtype=np.float32)
    if kind == "f":
        return np.ascontiguousarray(array, dtype=np.float32)
    raise UserError(f"images of dtype {array.dtype} are not supported; save them as uint8, uint16 or float32")


# --- The array that a file holds ---


@dataclass(frozen=True)
class _Raw:
    """The array of a file as it is stored, not read yet.

    Attributes:
        shape, dtype, axes: Of the array.
        take: What the array gives for an index with an integer or a slice of step 1 for each axis.
        cuts: Positions of the axes along which a part is read without decoding the rest.
        ones: Names of axes of length 1 that the array does not have, but the file speaks of.
        palette, alpha, note: As in `ImageFile`.
        path, stamp: The file, and what tells whether it was written again.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: str
    take: Callable[[Index], np.ndarray]
    cuts: tuple[int, ...] = ()
    ones: str = ""
    palette: np.ndarray | None = None
    alpha: bool = False
    note: str = ""
    path: Path = field(default_factory=Path)
    stamp: tuple[int, int] = (0, 0)


def _header(path: Path) -> _Raw:
    stamp = _stamp(path)
    young = time.time() - stamp[1] / 1e9 < YOUNG
    return _parse(path, stamp) if young else _remembered(path, stamp)


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _parse(path: Path, stamp: tuple[int, int]) -> _Raw:
    with path.open("rb") as file:
        kind = _kind(file.read(512), path)
        file.seek(0)
        readers = {"TIFF": _tiff, "NPY": _npy, "PNG": _png}
        raw = readers[kind](path, file) if kind in readers else None
    raw = raw or _picture(path)
    named = KINDS.get(path.suffix.lower(), kind)
    notes = [f"is a {kind} file, whatever its name says"] if named != kind else []
    return replace(raw, note="; ".join([*notes, *filter(None, [raw.note])]), path=path, stamp=stamp)


# Many samples may come from one file, such as the pages of a stack. Nothing in a header is open.
_remembered = functools.lru_cache(maxsize=32)(_parse)


def _kind(head: bytes, path: Path) -> str:
    """What the first bytes of a file say it is."""
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if not head:
        raise UserError("the file is empty")
    for magic, what in OTHER_MAGIC.items():
        if head.startswith(magic):
            raise UserError(f"is {what}; known kinds: {', '.join(sorted(SUFFIXES))}")
    text = head.decode("utf-8", errors="ignore").lstrip("\ufeff \r\n\t")
    if text[:1] == "<" and ("<html" in text.lower() or "<!doctype html" in text.lower()):
        raise UserError("is a web page and no image: was the download refused?")
    if len(text) > 0.9 * len(head) and text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        raise UserError(f'is a text file, which begins with "{text[:30].strip()}"')
    if path.suffix.lower() in SUFFIXES:
        raise UserError(f"the content is none of a {KINDS[path.suffix.lower()]} or another known file")
    raise UserError(f'files of kind "{path.suffix}" cannot be read; known: {", ".join(sorted(SUFFIXES))}')


def _stored(path: Path, dtype: np.dtype, shape: Sequence[int], offset: int) -> Callable[[Index], np.ndarray]:
    """Reads parts of an array that lies in a file as it would in memory."""
    steps = [math.prod(shape[i + 1 :]) for i in range(len(shape))]

    def take(index: Index) -> np.ndarray:
        spans = [_span(i, n) for i, n in zip(index, shape, strict=True)]
        final = [stop - start for (start, stop), i in zip(spans, index, strict=True) if isinstance(i, slice)]
        count = math.prod(final)
        if not count:
            return np.empty(final, dtype)
        first = sum(start * step for (start, _), step in zip(spans, steps, strict=True))
        last = sum((stop - 1) * step for (_, stop), step in zip(spans, steps, strict=True))
        if last - first + 1 != count:
            return np.array(np.memmap(path, dtype, "r", offset, tuple(shape))[index])
        array = np.fromfile(path, dtype, count, offset=offset + first * dtype.itemsize)
        if array.size != count:
            raise UserError("the file is cut off")
        return array.reshape(final)

    return take


def _decoded(shape: tuple[int, ...], decode: Callable[[], np.ndarray]) -> Callable[[Index], np.ndarray]:
    """Reads parts of what can only be decoded as a whole."""

    def take(index: Index) -> np.ndarray:
        array = decode()
        if array.shape != shape:
            raise UserError(f"the header promises shape {shape}, the file holds {array.shape}")
        part = array[index]
        return part if part.size == array.size else part.copy()  # which does not keep the whole alive

    return take


def _npy(path: Path, file: BinaryIO) -> _Raw:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, by_columns, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise UserError("the file holds Python objects in place of numbers")
    axes, everywhere = {2: "YX", 3: "CYX"}.get(len(shape), "?" * len(shape)), tuple(range(len(shape)))
    size, promised = path.stat().st_size, file.tell() + math.prod(shape) * dtype.itemsize
    if size < promised:
        raise UserError(f"the file is cut off: it has {size} bytes of {promised}")
    if not by_columns:
        return _Raw(shape, dtype, axes, _stored(path, dtype, shape, file.tell()), everywhere)
    turned = _stored(path, dtype, shape[::-1], file.tell())
    return _Raw(shape, dtype, axes, lambda index: turned(index[::-1]).T, everywhere)


# --- TIFF ---


def _tiff(path: Path, file: BinaryIO) -> _Raw:
    with tifffile.TiffFile(file, name=str(path)) as tiff:
        if not tiff.series:
            raise UserError("the TIFF file holds no image")
        series = tiff.series[0]
        if sum(other.shape == series.shape for other in tiff.series) > 1:
            raise UserError(f"the TIFF file holds {len(tiff.series)} separate images; save one file per image")
        _check_complete(tiff, series)
        shape, dtype, axes = tuple(series.shape), np.dtype(series.dtype), series.axes
        ones = "".join(name for name in series.get_axes(squeeze=False) if name not in axes + "S")
        turned = series.keyframe.tags.valueof(ORIENTATION, 1)
        take: Callable[[Index], np.ndarray]
        cuts: tuple[int, ...]
        pages = _segmented(path, tiff, series) if series.dataoffset is None else None
        if pages is not None:
            take, cuts = pages.take, pages.cuts
        elif series.dataoffset is not None and series.transform is None:
            dtype = dtype.newbyteorder(tiff.byteorder)
            take, cuts = _stored(path, dtype, shape, series.dataoffset), tuple(range(len(shape)))
        else:
            take, cuts = _decoded(shape, lambda: tifffile.imread(path, series=0)), ()
    if "C" not in axes:  # colours are channels
        axes = axes.replace("S", "C")
    return _Raw(shape, dtype, axes, take, cuts, ones, note=_turned(turned))


def _turned(orientation: Any) -> str:
    return "" if orientation in (0, 1) else f"is kept as stored, not turned as its orientation {orientation} asks"


def _check_complete(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    """Refuse a file that was cut off: tifffile would give the pages that are left, or half of a JPEG page."""
    file, layout, last = tiff.filehandle, tiff.tiff, tiff.pages[-1].offset
    file.seek(last)
    (n_tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(last + layout.tagnosize + n_tags * layout.tagsize)
    ends = list(struct.unpack(layout.offsetformat, file.read(layout.offsetsize)))  # of the next page, or 0
    if series.dataoffset is not None:
        ends.append(series.dataoffset + series.nbytes)
    else:
        for page in series.pages:
            if page is not None and page.parent is tiff:
                ends += [start + n for start, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if max(ends) > file.size:
        raise UserError(f"the file is cut off: it has {file.size} bytes and points to byte {max(ends)}")


@dataclass(frozen=True)
class _Segmented:
    """Pages in strips or tiles, of which only those are decoded that are asked for.

    Attributes:
        path: The file.
        lead: Shape of the array that the pages make up.
        page: Shape of a page.
        row: Which axis of a page is its rows.
        plane: Which axis of a page is its colours, where these are stored as planes.
        shaped: The shape of a page as (planes, depth, rows, columns, colours).
        grid: Number of segments along (planes, depth, rows, columns).
        length: Rows of a segment.
        nodata: Value of segments that the file does not have.
        decode: The decoder of tifffile, which does not need the file.
        offsets, counts: Per page, where the segments lie and how many bytes they have.
        options: Per page, for the decoder.
        stored: dtype in the file, where pages lie in it as in memory; else None.
    """

    path: Path
    lead: tuple[int, ...]
    page: tuple[int, ...]
    dtype: np.dtype
    row: int
    plane: int | None
    shaped: tuple[int, ...]
    grid: tuple[int, ...]
    length: int
    nodata: Any
    decode: Callable[..., Any]
    offsets: list[tuple[int, ...]]
    counts: list[tuple[int, ...]]
    options: list[dict[str, Any]]
    stored: np.dtype | None

    @property
    def cuts(self) -> tuple[int, ...]:
        """See `_Raw`."""
        row = (len(self.lead) + self.row,) if self.grid[2] > 1 or self.stored else ()
        return (*range(len(self.lead)), *row)

    def take(self, index: Index) -> np.ndarray:
        """See `_Raw`."""
        before, inside = index[: len(self.lead)], list(index[len(self.lead) :])
        numbers = np.arange(math.prod(self.lead)).reshape(self.lead)[before]
        pages = self._stored(numbers, tuple(inside)) if self.stored else self._decoded(numbers, inside)
        if len(pages) == 1:  # spares a copy
            return pages[0].reshape(numbers.shape + pages[0].shape)
        return np.stack(pages).reshape(numbers.shape + pages[0].shape)

    def _stored(self, numbers: np.ndarray, index: Index) -> list[np.ndarray]:
        assert self.stored
        starts = (self.offsets[n][0] for n in numbers.flat)
        return [_stored(self.path, self.stored, self.page, start)(index) for start in starts]

    def _decoded(self, numbers: np.ndarray, inside: list[int | slice]) -> list[np.ndarray]:
        rows, planes = _span(inside[self.row], self.page[self.row]), (0, self.shaped[0])
        inside[self.row] = 0 if isinstance(inside[self.row], int) else slice(None)
        if self.plane is not None:
            planes = _span(inside[self.plane], self.shaped[0])
            inside[self.plane] = 0 if isinstance(inside[self.plane], int) else slice(None)
        with self.path.open("rb", buffering=0) as file:
            return [self._page(file, int(n), rows, planes)[tuple(inside)] for n in numbers.flat]

    def _page(self, file: BinaryIO, number: int, rows: tuple[int, int], planes: tuple[int, int]) -> np.ndarray:
        """The rows of the planes of one page."""
        (y0, y1), (_, depth, _, width, samples) = rows, self.shaped
        result = np.empty((planes[1] - planes[0], depth, y1 - y0, width, samples), self.dtype)
        offsets, counts, options = self.offsets[number], self.counts[number], self.options[number]
        needed = range(y0 // self.length, -(-y1 // self.length) if y1 > y0 else 0)
        ranges = range(*planes), range(self.grid[1]), needed, range(self.grid[3])
        for plane, layer, row, column in itertools.product(*ranges):
            i = ((plane * self.grid[1] + layer) * self.grid[2] + row) * self.grid[3] + column
            data = None
            if offsets[i] and counts[i]:
                file.seek(offsets[i])
                data = file.read(counts[i])
            segment, (_, z, y, x, _), shape = self.decode(data, i, **options)
            top, bottom = max(y, y0), min(y + shape[1], y1)
            place = result[plane - planes[0], z : z + shape[0], top - y0 : bottom - y0, x : x + shape[2]]
            place[...] = self.nodata if segment is None else segment[: depth - z, top - y : bottom - y, : width - x]
        page = list(self.page)
        page[self.row] = y1 - y0
        if self.plane is not None:
            page[self.plane] = planes[1] - planes[0]
        return result.reshape(page)


def _span(index: int | slice, n: int) -> tuple[int, int]:
    return (index, index + 1) if isinstance(index, int) else index.indices(n)[:2]


def _segmented(path: Path, tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> _Segmented | None:
    """How the pages are stored, or None where tifffile is to read them its own way."""
    key, all_pages = series.keyframe, list(series.pages)
    pages = [p for p in all_pages if p is not None and p.keyframe is not None and p.parent is tiff]
    shape, shaped, page = tuple(series.shape), tuple(key.shaped), tuple(key.shape)
    lead = shape[: len(shape) - len(page)]
    if (
        series.transform is not None
        or shape[len(lead) :] != page
        or math.prod(lead) != len(pages)
        or len(pages) != len(all_pages)
        or any(p.keyframe is not key and p.hash != key.hash for p in pages)
        or key.compression in NOT_SEGMENTED
        or key.jpegheader is not None
        or "Y" not in key.axes
    ):
        return None
    if key.is_tiled:
        columns, layers, length = -(-shaped[3] // key.tilewidth), -(-shaped[1] // key.tiledepth), key.tilelength
    else:
        columns, layers, length = 1, shaped[1], key.rowsperstrip
    return _Segmented(
        path=path,
        lead=lead,
        page=page,
        dtype=np.dtype(series.dtype),
        row=key.axes.index("Y"),
        plane=key.axes.index("S") if shaped[0] > 1 else None,
        shaped=shaped,
        grid=(shaped[0], layers, -(-shaped[2] // length), columns),
        length=length,
        nodata=key.nodata,
        decode=key.decode,
        offsets=[tuple(p.dataoffsets) for p in pages],
        counts=[tuple(p.databytecounts) for p in pages],
        options=[{"jpegtables": p.jpegtables} if p.jpegtables is not None else {} for p in pages],
        stored=np.dtype(series.dtype).newbyteorder(tiff.byteorder) if key.is_final else None,
    )


# --- Pictures ---


def _png(path: Path, file: BinaryIO) -> _Raw | None:
    """A PNG file that need not be read by Pillow, which is slower, and cuts 16-bit colour to 8 bits without a word."""
    header = file.read(33)
    if len(header) < 33 or header[12:16] != b"IHDR":
        raise UserError("the file is cut off or damaged")
    width, height, bits, colours = struct.unpack(">IIBB", header[16:26])
    bands = {0: 1, 2: 3, 4: 2, 6: 4}.get(colours)
    if bands is None or bits not in (8, 16) or header[28]:  # the last: interlaced
        return None
    kind = b""
    while kind != b"IDAT":
        head = file.read(8)
        if len(head) < 8:
            raise UserError("the file is cut off or damaged")
        length, kind = struct.unpack(">I4s", head)
        # Animated, transparent, turned, or with a profile of which libpng would complain aloud: Pillow looks closer.
        if kind in (b"acTL", b"tRNS", b"eXIf", b"iCCP"):
            return None
        file.seek(length + 4, 1)
    shape = (height, width) if bands == 1 else (height, width, bands)
    dtype = np.dtype(np.uint16 if bits == 16 else np.uint8)
    take = _decoded(shape, lambda: imagecodecs.png_decode(path.read_bytes()))
    return _Raw(shape, dtype, "YX" if bands == 1 else "YXC", take, alpha=bands in (2, 4))


def _picture(path: Path) -> _Raw:
    with Image.open(path) as picture:
        mode, (width, height), bands = picture.mode, picture.size, len(picture.getbands())
        palette = np.zeros((256, 3), np.uint8)
        if mode == "P":
            colours = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette[: len(colours)] = colours
        # A camera's JPEG may carry a preview as a second picture (MPO).
        if getattr(picture, "is_animated", False) and picture.format != "MPO":
            raise UserError("the file holds several pictures, of which only one would be read; save it as TIFF")
        # Where there is none, `getexif` decodes a whole PNG to look for it at the end.
        turned = picture.getexif().get(ORIENTATION, 1) if "exif" in picture.info else 1
    bits = _png_bits(path)
    shape = (height, width) if bands == 1 else (height, width, bands)
    dtype = np.dtype({"I": np.int32, "F": np.float32}.get(mode, np.uint16 if mode.startswith("I;16") else np.uint8))

    def decode() -> np.ndarray:
        with Image.open(path) as picture:
            # Pillow stretches grey of 2 and 4 bits to 0-255.
            return np.asarray(picture) // (255 // (2**bits - 1)) if mode == "L" and bits < 8 else np.asarray(picture)

    if bits == 16 and bands > 1:
        dtype, decode = np.dtype(np.uint16), lambda: imagecodecs.png_decode(path.read_bytes())[..., :bands]
    elif mode not in FAITHFUL_MODES:
        raise UserError(f'pictures of mode "{mode}" are not read; save it as grey or RGB')
    return _Raw(
        shape,
        dtype,
        "YX" if bands == 1 else "YXC",
        _decoded(shape, decode),
        palette=palette if mode == "P" else None,
        alpha=bands in (2, 4),
        note=_turned(turned),
    )


def _png_bits(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(26)
    return head[24] if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) > 24 else 8


# --- From the array of a file to (C, H, W) ---


def _axes(raw: _Raw, axes: str | None) -> str:
    """The names of the axes of the array, one letter each."""
    axes = axes or raw.axes
    if len(raw.shape) == 2 and len(axes) == 3:
        axes = "".join(axis for axis in axes if axis in "YX")
    if len(axes) != len(raw.shape):
        raise UserError(f'the array of shape {raw.shape} does not have the axes "{axes}"; set `axes`')
    if 0 in raw.shape:
        raise UserError(f"the array of shape {raw.shape} has no pixels")
    if axes.count("Y") != 1 or axes.count("X") != 1:
        raise UserError(f'the array of shape {raw.shape} with axes "{axes}" needs one axis Y and one X; set `axes`')
    if axes == "CYX" and raw.shape[2] <= 4 < raw.shape[0]:
        raise UserError(f"shape {raw.shape} looks like (Y, X, C) where (C, Y, X) is expected; set `axes: YXC`")
    return axes


def _unnamed(shape: tuple[int, ...], axes: str) -> str:
    return f'the array of shape {shape} with axes "{axes}" has axes without names of their own; set `axes`, as "TCYX"'


def _uses(raw: _Raw, axes: str, pages: Pages | None) -> dict[str, str | int]:
    """What becomes of each axis other than Y and X, where it has a length of more than 1, in the order to be done."""
    sizes = {name: n for name, n in zip(axes, raw.shape, strict=True) if name not in "YX"}
    long = [name for name, n in zip(axes, raw.shape, strict=True) if n > 1 and name not in "YX"]
    if pages is None and len(long) <= 1:
        return dict.fromkeys(long, "channels")
    if len(set(long)) < len(long):
        raise UserError(_unnamed(raw.shape, axes))
    known = sizes | dict.fromkeys(raw.ones, 1)
    told = ", ".join(f"{name}: {known[name]}" for name in long) or "none but Y and X"
    uses = dict(pages or ())
    for name, use in uses.items():
        if name not in known:
            raise UserError(f"`pages`: there is no axis {name}; the axes of the file are {told}")
        if isinstance(use, int) and not 0 <= use < known[name]:
            raise UserError(f"`pages`: there is no position {use} of axis {name}, which has {known[name]}")
        if not isinstance(use, int) and use not in ("channels", "max", "mean"):
            raise UserError(f'`pages`: "{use}" of axis {name} is none of channels, max, mean and a position')
    if list(uses.values()).count("channels") > 1:
        raise UserError("`pages`: only one axis can be the channels")
    if missing := [name for name in long if name not in uses]:
        usual = {"T": "samples", "Z": "max", "C": "channels"}
        hint = ", ".join(f"{name}: {uses.get(name, usual.get(name, 'samples'))}" for name in long)
        raise UserError(
            f"the file has the axes {told}: set what becomes of {' and '.join(missing)}, as "
            f"`pages: {{{hint}}}` (samples, channels, max, mean or a position)"
        )
    return {name: use for name, use in uses.items() if name in long}


def _arranged(raw: _Raw, axes: str | None, pages: Pages | None = None, channel: int | None = None) -> ImageFile:
    """The image in a file, or one channel of it."""
    names = _axes(raw, axes)
    uses = _uses(raw, names, pages)
    place = {name: names.index(name) for name in ("Y", "X", *uses)}
    channels = next((place[name] for name, use in uses.items() if use == "channels"), None)
    n_channels, height, width = (
        (1 if channels is None else raw.shape[channels]),
        raw.shape[place["Y"]],
        raw.shape[place["X"]],
    )
    if channel is not None and not 0 <= channel < n_channels:
        raise UserError(f"there is no channel {channel}: the file has {n_channels}")
    fixed: dict[int, int | slice] = {place[name]: use for name, use in uses.items() if isinstance(use, int)}
    if channels is not None:
        fixed[channels] = slice(None) if channel is None else slice(channel, channel + 1)
    # Y, X and channels stay, in the order of the file; the rest is of length 1 or reduced.
    kept = sorted(i for i in (place["Y"], place["X"], channels) if i is not None)
    order = [kept.index(i) for i in (channels, place["Y"], place["X"]) if i is not None]
    reductions: list[tuple[int, object]] = [(place[name], use) for name, use in uses.items() if use in ("max", "mean")]
    integer = raw.dtype.kind in "iub"

    def read(y0: int, y1: int) -> np.ndarray:
        if _stamp(raw.path) != raw.stamp:
            raise UserError("the file was written again after it was opened")
        if y0 == y1:
            return np.empty((shape[0], 0, width), dtype)
        index = {place["Y"]: _rows(y0, y1, height), place["X"]: slice(None)} | fixed
        array = _gather(raw, index, reductions)
        if array.dtype.kind == "f" and integer:
            array = np.rint(array).astype(raw.dtype)
        array = array.transpose(order)
        return plain_dtype(array if channels is not None else array[None])

    shape = (n_channels if channel is None else 1, height, width)
    alpha = raw.alpha and channel is None
    dtype = plain_dtype(np.empty(0, raw.dtype)).dtype
    return ImageFile(shape, dtype, read, place["Y"] in raw.cuts, raw.palette, alpha, raw.note)


def _gather(raw: _Raw, index: dict[int, int | slice], steps: list[tuple[int, object]]) -> np.ndarray:
    """What is taken of the array after the steps, each of which takes the "max" or "mean" along an axis."""
    if not steps:
        return raw.take(tuple(index.get(i, 0) for i in range(len(raw.shape))))
    axis, how = steps[-1]
    parts = (_gather(raw, index | {axis: i}, steps[:-1]) for i in range(raw.shape[axis]))
    if how == "max":
        return functools.reduce(np.maximum, parts)
    return functools.reduce(np.add, (part.astype(np.float64) for part in parts)) / raw.shape[axis]


def _rows(y0: int, y1: int, height: int) -> slice:
    if not 0 <= y0 <= y1 <= height:
        raise ValueError(f"there are no rows {y0} to {y1} in an image of {height}")
    return slice(y0, y1)
