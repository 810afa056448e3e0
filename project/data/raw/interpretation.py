"""What a file declares about its values: colours, which end is white, pixels without data, orientation.

One rule and one wording for every reader: a declaration is applied, refused, or kept as a note.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from project.data.raw.lazy import Index, LazyArray
from project.errors import UserError

ORIENTATION = 274  # the EXIF and TIFF tag
ATTRIBUTES = ("_FillValue", "missing_value", "scale_factor", "add_offset", "IMAGE_WHITE_IS_ZERO", "IMAGE_SUBCLASS")


@dataclass(frozen=True)
class NodataRule:
    """What happens to pixels that a file declares as "no data", by a value or by a mask of validity.

    Attributes:
        fill: Number that takes their place, `not_finite` or `ignore_index`; without it they are an error.
        advice: What to do about that error.
        data: Values that are data although the file declares them as "no data".
        widen: Whether the dtype may become one that holds `fill`, as for class numbers.
    """

    fill: float | None = None
    advice: str = ""
    data: tuple[int, ...] = ()
    widen: bool = False


ZERO = NodataRule(0)


def refuse_colours(name: str) -> None:
    """Raise the error for colour spaces other than grey and RGB."""
    raise UserError(f'pictures of mode "{name}" are not read; save it as grey or RGB')


def not_turned(orientation: object) -> str:
    """The note on a file whose tag `ORIENTATION` asks for a rotation; "" where it does not."""
    return "" if orientation in (0, 1) else f"is kept as stored, not turned as its orientation {orientation} asks"


def notes(texts: Iterable[str]) -> str:
    """Several notes on one file as one."""
    return "; ".join(filter(None, texts))


def with_colours(array: LazyArray, palette: np.ndarray | None, is_display: bool = False) -> LazyArray:
    """The array with its colour table.

    A table that only colours measured values for display (a ramp from black to one colour) is noted; a grey ramp
    changes nothing; any other makes the values places in the table, `LazyArray.indexed`.

    Args:
        array: Indices, without colours.
        palette: (K, 3), or None.
        is_display: Whether the file was written by software that stores measured values with a display table.
    """
    if palette is None:
        return array
    n = int(np.flatnonzero(palette.any(axis=1)).max(initial=0)) + 1  # the rest is padding
    is_grey = bool((palette[:n] == np.arange(n)[:, None]).all())
    ramp = np.linspace(0, palette[-1].astype(float), len(palette))
    is_ramp = len(palette) in (256, 65536) and np.abs(palette - ramp).max() <= 1
    shown = is_grey or is_ramp or is_display
    note = "has a colour table for display only; the stored values are kept" if shown and not is_grey else ""
    return replace(array, palette=palette, indexed=not shown, note=notes([array.note, note]))


def inverted(array: LazyArray, bits: int) -> LazyArray:
    """The array of a file in which 0 is white, with 0 black; a value for "no data" changes along.

    Raises:
        UserError: The values are not unsigned, so that white has no counterpart.
    """
    if array.dtype.kind not in "bu":
        raise UserError(f"0 is white in the file, which has no meaning for {array.dtype}; save it with 0 as black")
    highest = array.dtype.type(2**bits - 1) if array.dtype.kind == "u" else np.True_

    def take(index: Index) -> np.ndarray:
        return np.bitwise_xor(array.take(index), highest)  # highest - value, for unsigned and bool

    nodata = None if array.nodata is None else type(array.nodata)(int(highest) - array.nodata)
    note = "is stored with 0 as white; its values are inverted, so that 0 is black"
    return replace(array, take=take, nodata=nodata, inverted=bits > 1, note=notes([array.note, note]))


def nodata_value(text: object, dtype: np.dtype) -> tuple[float | int | None, str]:
    """The declared value for "no data" as a value of this dtype, and a note.

    Args:
        text: A number, or its text as in the tag GDAL_NODATA; None where nothing is declared.
        dtype: Of the pixels.

    Returns:
        None for the value where no pixel can have it, as -9999 in uint8.
    """
    if text is None:
        return None, ""
    shown = str(text).strip(" \0")
    try:
        number = float(shown.replace(",", "."))
    except ValueError:
        return None, f'declares "{shown}" as "no data", which is no number and is not used'
    note = f'declares {shown} as "no data"'
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(dtype.type(number)), note
    limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not math.isfinite(number) or number % 1 or not limits[0] <= number <= limits[1]:
        return None, f"{note}, which no pixel of {dtype} can have"
    return int(number), note


def with_attributes(array: LazyArray, attributes: Mapping[str, Any]) -> LazyArray:
    """The array of an HDF5 dataset with what its attributes declare.

    Source: netCDF conventions (`_FillValue`, `missing_value`, `scale_factor`, `add_offset`) and the HDF5 Image and
    Palette Specification 1.2 (`IMAGE_WHITE_IS_ZERO`, `IMAGE_SUBCLASS`).
    """
    declared = {name: np.ravel(attributes[name])[0] for name in ATTRIBUTES if name in attributes}
    subclass = declared.get("IMAGE_SUBCLASS", b"")
    if "INDEXED" in (subclass.decode() if isinstance(subclass, bytes) else str(subclass)):
        array = replace(array, indexed=True)
    nodata, note = nodata_value(declared.get("_FillValue", declared.get("missing_value")), array.dtype)
    scaled = (declared.get("scale_factor", 1), declared.get("add_offset", 0)) != (1, 0)
    kept = "declares scale_factor or add_offset; the stored values are kept" if scaled else ""
    array = replace(array, nodata=nodata, note=notes([array.note, note, kept]))
    return inverted(array, 8 * array.dtype.itemsize) if declared.get("IMAGE_WHITE_IS_ZERO", 0) else array


def filled(array: LazyArray, rule: NodataRule) -> LazyArray:
    """The array with `rule.fill` where the file declares "no data".

    Reading raises a `UserError` for such pixels where there is no `fill`, or one that is no value of the dtype.
    """
    value = None if array.nodata in rule.data else array.nodata
    if value is None and array.valid is None:
        return array

    def take(index: Index) -> np.ndarray:
        part = array.take(index)
        lost = _lost(array, value, part, index)
        if not (n := np.count_nonzero(lost)):
            return part
        if rule.fill is None:
            what = "outside the mask of validity of the file" if value is None else f'{value}, which means "no data"'
            raise UserError(f"{n} pixels are {what}; {rule.advice}")
        if part.dtype.kind == "f":
            return np.where(lost, part.dtype.type(rule.fill), part)
        dtype = np.result_type(part.dtype, np.min_scalar_type(int(rule.fill)))
        if rule.fill % 1 or not (rule.widen or dtype == part.dtype):
            raise UserError(f"`not_finite: {rule.fill:g}` is no value of {part.dtype}, the dtype of the file")
        return np.where(lost, dtype.type(rule.fill), part.astype(dtype, copy=False))

    where = "" if rule.fill is None else f"such pixels become {rule.fill:g}"
    mask = "" if array.valid is None else "has a mask of validity"
    return replace(array, take=take, note=notes([array.note, mask, where]))


def _lost(array: LazyArray, value: float | int | None, part: np.ndarray, index: Index) -> np.ndarray:
    lost = np.zeros(part.shape, bool)
    if value is not None:
        lost |= np.isnan(part) if value != value else part == value
    if array.valid is not None:
        y, x = array.axes.index("Y"), array.axes.index("X")
        kept = [axis for axis, i in enumerate(index) if isinstance(i, slice)]
        shape = [n if axis in (y, x) else 1 for axis, n in zip(kept, part.shape, strict=True)]
        lost |= ~array.valid((index[y], index[x])).astype(bool).reshape(shape)
    return lost
