"""Strips and tiles of TIFF pages: only those that are needed are decoded."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tifffile

from project.data.raw.lazy_image import Index, read_mapped

Span = tuple[int, int]
NOT_SEGMENTED = {65000, 65001, 65002}  # compressions of electron event counts, which tifffile decodes by pages


def segment_reader(
    path: Path, tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries
) -> tuple[Callable[[Index], np.ndarray], tuple[int, ...]] | None:
    """Function that reads a part of a series, and the axes along which it decodes no more than it needs.

    The decoder of tifffile, `TiffPage.decode`, does not need the open file: it is called for each strip or tile. None
    where tifffile has to read the series its own way.
    """
    key, pages = series.keyframe, [p for p in series.pages if p is not None and p.parent is tiff and p.keyframe]
    n_lead = len(series.shape) - len(key.shape)
    if (
        series.transform is not None
        or tuple(series.shape[n_lead:]) != tuple(key.shape)
        or math.prod(series.shape[:n_lead]) != len(pages)
        or len(pages) != len(series.pages)
        or any(page.hash != key.hash for page in pages)
        or key.compression in NOT_SEGMENTED
        or key.jpegheader is not None
        or key.imagedepth > 1
        or "Y" not in key.axes
    ):
        return None
    numbers = np.arange(len(pages)).reshape(series.shape[:n_lead])
    tables = [(page.dataoffsets, page.databytecounts, page.jpegtables) for page in pages]
    stored = np.dtype(series.dtype).newbyteorder(tiff.byteorder) if key.is_final else None
    shape, axes, decode_window = tuple(key.shape), key.axes, _window_decoder(path, key, np.dtype(series.dtype))

    def read(index: Index) -> np.ndarray:
        lead, inside = index[:n_lead], index[n_lead:]
        spans = [(i, i + 1) if isinstance(i, int) else i.indices(n)[:2] for i, n in zip(inside, shape, strict=True)]
        parts = []
        for number in numbers[lead].flat:
            offsets, counts, jpegtables = tables[number]
            if stored is not None:  # uncompressed, in one piece
                parts.append(read_mapped(path, stored, shape, offsets[0])(inside))
                continue
            part = decode_window(offsets, counts, jpegtables, dict(zip(axes, spans, strict=True)))
            part = part.reshape([stop - start for start, stop in spans])
            parts.append(part[tuple(0 if isinstance(i, int) else slice(None) for i in inside)])
        array = np.stack(parts) if len(parts) > 1 else parts[0]  # spares a copy
        return array.reshape(numbers[lead].shape + parts[0].shape)

    divided = [stored is not None or n > 1 for n in key.chunked]
    return read, (*range(n_lead), *(n_lead + i for i, is_divided in enumerate(divided) if is_divided))


def _window_decoder(path: Path, key: tifffile.TiffPage, dtype: np.dtype) -> Callable[..., np.ndarray]:
    """Function that decodes a window of a page into (planes, rows, columns, samples)."""
    n_planes, _, height, width, _ = key.shaped
    length, columns = (key.tilelength, key.tilewidth) if key.is_tiled else (key.rowsperstrip, width)
    grid = n_planes, -(-height // length), -(-width // columns)
    decode, fill = key.decode, key.nodata

    def decode_window(
        offsets: Sequence[int], counts: Sequence[int], jpegtables: bytes | None, spans: dict[str, Span]
    ) -> np.ndarray:
        samples = spans.get("S", (0, 1))
        planes, (first, last) = (samples, (0, 1)) if n_planes > 1 else ((0, 1), samples)
        (y0, y1), (x0, x1) = spans["Y"], spans["X"]
        window = np.full((planes[1] - planes[0], y1 - y0, x1 - x0, last - first), fill, dtype)
        options = {"jpegtables": jpegtables} if jpegtables else {}
        needed = itertools.product(
            range(*planes), range(y0 // length, -(-y1 // length)), range(x0 // columns, -(-x1 // columns))
        )
        with path.open("rb", buffering=0) as file:
            for plane, row, column in needed:
                i = int(np.ravel_multi_index((plane, row, column), grid))
                if not (offsets[i] and counts[i]):
                    continue  # a segment that the file does not have
                file.seek(offsets[i])
                segment, (_, _, y, x, _), (_, h, w, _) = decode(file.read(counts[i]), i, **options)
                assert segment is not None
                top, bottom, left, right = max(y, y0), min(y + h, y1), max(x, x0), min(x + w, x1)
                window[plane - planes[0], top - y0 : bottom - y0, left - x0 : right - x0] = segment[
                    0, top - y : bottom - y, left - x : right - x, first:last
                ]
        return window

    return decode_window
