"""Strips and tiles of TIFF pages, of which only those are decoded that are asked for."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from project.data.raw.lazy import Index, span, stored

# Compressions whose pages tifffile does not decode segment by segment: electron event counts.
NOT_SEGMENTED = {65000, 65001, 65002}


@dataclass(frozen=True)
class _Page:
    """Where the segments of a page lie in the file, how many bytes they have, and what the decoder must be told."""

    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class Segments:
    """Pages in strips or tiles, the segments of which are decoded one by one.

    Attributes:
        path: The file.
        pages: Where they lie.
        lead: Shape of the array that the pages make up.
        shape, dtype: Of each page.
        stored: dtype in the file, where pages lie in it as in memory; else None.
        row: Which axis of a page is its rows.
        plane: Which axis of a page is its colours, where these are stored as planes.
        width: Columns of a page.
        n_colours: Of each pixel of a plane.
        grid: Number of segments along the rows and columns of a plane.
        length: Rows of a segment.
        nodata: Value of segments that the file does not have.
        decode: The decoder of tifffile, which does not need the file.
    """

    path: Path
    pages: list[_Page]
    lead: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    stored: np.dtype | None
    row: int
    plane: int | None
    width: int
    n_colours: int
    grid: tuple[int, int]
    length: int
    nodata: Any
    decode: Callable[..., Any]

    @property
    def cuts(self) -> tuple[int, ...]:
        """See `LazyArray`."""
        row = (len(self.lead) + self.row,) if self.grid[0] > 1 or self.stored else ()
        return (*range(len(self.lead)), *row)

    def take(self, index: Index) -> np.ndarray:
        """See `LazyArray`."""
        before, inside = index[: len(self.lead)], index[len(self.lead) :]
        numbers = np.arange(len(self.pages)).reshape(self.lead)[before]
        wanted = [self.pages[n] for n in numbers.flat]
        parts = self._stored(wanted, inside) if self.stored else self._decoded(wanted, inside)
        whole = np.stack(parts) if len(parts) > 1 else parts[0]  # spares a copy
        return whole.reshape(numbers.shape + parts[0].shape)

    def _stored(self, pages: list[_Page], inside: Index) -> list[np.ndarray]:
        assert self.stored
        return [stored(self.path, self.stored, self.shape, page.offsets[0])(inside) for page in pages]

    def _decoded(self, pages: list[_Page], inside: Index) -> list[np.ndarray]:
        spans = {axis: span(inside[axis], self.shape[axis]) for axis in (self.row, self.plane) if axis is not None}
        rows, planes = spans[self.row], (0, 1) if self.plane is None else spans[self.plane]
        shape = [spans[axis][1] - spans[axis][0] if axis in spans else n for axis, n in enumerate(self.shape)]
        # Of these axes no more is decoded than is asked for.
        rest = tuple(
            (0 if isinstance(i, int) else slice(None)) if axis in spans else i for axis, i in enumerate(inside)
        )
        with self.path.open("rb", buffering=0) as file:
            return [self._decoded_page(file, page, planes, rows).reshape(shape)[rest] for page in pages]

    def _decoded_page(self, file: BinaryIO, page: _Page, planes: tuple[int, int], rows: tuple[int, int]) -> np.ndarray:
        """These planes and rows, as (planes, rows, columns, colours)."""
        y0, y1 = rows
        result = np.empty((planes[1] - planes[0], y1 - y0, self.width, self.n_colours), self.dtype)
        needed = range(y0 // self.length, -(-y1 // self.length))
        for plane, row, column in itertools.product(range(*planes), needed, range(self.grid[1])):
            i = (plane * self.grid[0] + row) * self.grid[1] + column
            data = None
            if page.offsets[i] and page.counts[i]:
                file.seek(page.offsets[i])
                data = file.read(page.counts[i])
            segment, (_, _, y, x, _), (_, height, columns, _) = self.decode(data, i, **page.options)
            top, bottom = max(y, y0), min(y + height, y1)
            place = result[plane - planes[0], top - y0 : bottom - y0, x : x + columns]
            place[...] = self.nodata if segment is None else segment[0, top - y : bottom - y, : self.width - x]
        return result


def segments(path: Path, tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Segments | None:
    """How the pages are stored, or None where tifffile is to read them its own way."""
    key, all_pages = series.keyframe, list(series.pages)
    pages = [p for p in all_pages if p is not None and p.parent is tiff and p.keyframe is not None]
    shape, page = tuple(series.shape), tuple(key.shape)
    lead, (planes, depth, height, width, n_colours) = shape[: len(shape) - len(page)], key.shaped
    if (
        series.transform is not None
        or (*lead, *page) != shape
        or math.prod(lead) != len(pages)
        or len(pages) != len(all_pages)
        or any(p.hash != key.hash for p in pages)
        or key.compression in NOT_SEGMENTED
        or key.jpegheader is not None
        or "Y" not in key.axes
        or depth > 1
    ):
        return None
    length, columns = (key.tilelength, -(-width // key.tilewidth)) if key.is_tiled else (key.rowsperstrip, 1)
    return Segments(
        path=path,
        pages=[
            _Page(tuple(p.dataoffsets), tuple(p.databytecounts), {"jpegtables": p.jpegtables} if p.jpegtables else {})
            for p in pages
        ],
        lead=lead,
        shape=page,
        dtype=np.dtype(series.dtype),
        stored=np.dtype(series.dtype).newbyteorder(tiff.byteorder) if key.is_final else None,
        row=key.axes.index("Y"),
        plane=key.axes.index("S") if planes > 1 else None,
        width=width,
        n_colours=n_colours,
        grid=(-(-height // length), columns),
        length=length,
        nodata=key.nodata,
        decode=key.decode,
    )
