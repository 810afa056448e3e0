"""What a file declares about its values: colors, which end is white, pixels without data, orientation.

Every reader applies the same rules: a declaration is applied, refused, or kept as a note.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from project.data.raw.lazy_image import Index, LazyImage
from project.errors import UserError

ORIENTATION = 274  # EXIF and TIFF tag
ATTRIBUTES = ("_FillValue", "missing_value", "scale_factor", "add_offset", "IMAGE_WHITE_IS_ZERO", "IMAGE_SUBCLASS")


@dataclass(frozen=True)
class NodataRule:
    """What happens to pixels that a file declares as "no data", by a value or by a mask of validity."""

    fill: float | None = None  # replaces them, `not_finite` or `ignore_index`; without it they are an error
    advice: str = ""  # what to do about that error
    data: tuple[int, ...] = ()  # values that are data although the file declares them as "no data"
    widen: bool = False  # whether the dtype may become one that holds `fill`, as for class numbers


ZERO = NodataRule(0)


def refuse_colors(name: str) -> None:
    """Raise the error for color spaces other than gray and RGB."""
    raise UserError(f'pictures of mode "{name}" are not supported; save it as gray or RGB')


def orientation_note(orientation: object) -> str:
    """Note on a file whose tag `ORIENTATION` asks for a rotation; "" where it does not."""
    return "" if orientation in (0, 1) else f"is kept as stored, not rotated as its orientation {orientation} asks"


def with_palette(image: LazyImage, palette: np.ndarray, is_display: bool = False) -> LazyImage:
    """The image with its color table.

    A table that only colors measured values for display (a ramp from black to one color) is noted; a gray ramp changes
    nothing; any other makes the values indices into the table, `LazyImage.indexed`.
    `palette` is (K, 3); `is_display` says that the software that wrote the file has tables for display only.
    """
    n = int(np.flatnonzero(palette.any(axis=1)).max(initial=0)) + 1  # the others are padding
    is_gray = bool((palette[:n] == np.arange(n)[:, None]).all())
    ramp = np.linspace(0, palette[-1].astype(float), len(palette))
    is_ramp = len(palette) in (256, 65536) and np.abs(palette - ramp).max() <= 1
    displayed = is_gray or is_ramp or is_display
    note = "has a color table for display only; the stored values are kept" if displayed and not is_gray else ""
    return replace(image, palette=palette, indexed=not displayed).with_notes(note)


def inverted(image: LazyImage, bits: int) -> LazyImage:
    """The image of a file in which 0 is white, with 0 black; a value for "no data" changes along."""
    if image.dtype.kind not in "bu":
        raise UserError(f"0 is white in the file, which has no meaning for {image.dtype}; save it with 0 as black")
    highest = image.dtype.type(2**bits - 1) if image.dtype.kind == "u" else np.True_
    nodata = None if image.nodata is None else type(image.nodata)(int(highest) - image.nodata)
    note = "is stored with 0 as white; its values are inverted, so that 0 is black"
    # highest - value, for unsigned and bool
    return replace(image, read=lambda index: image.read(index) ^ highest, nodata=nodata, inverted=bits > 1).with_notes(
        note
    )


def nodata_value(declared: object, dtype: np.dtype) -> tuple[float | int | None, str]:
    """The declared value for "no data" (a number or its text) as a value of this dtype, and a note.

    The value is None where no pixel can have it, such as -9999 in uint8.
    """
    if declared is None:
        return None, ""
    text = str(declared).strip(" \0")
    try:
        number = float(text.replace(",", "."))
    except ValueError:
        return None, f'declares "{text}" as "no data", which is not a number and is not used'
    note = f'declares {text} as "no data"'
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(dtype.type(number)), note
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not math.isfinite(number) or number % 1 or not low <= number <= high:
        return None, f"{note}, which no pixel of {dtype} can have"
    return int(number), note


def with_attributes(image: LazyImage, attributes: Mapping[str, Any]) -> LazyImage:
    """The image of an HDF5 dataset with what its attributes declare.

    Source: netCDF conventions (`_FillValue`, `missing_value`, `scale_factor`, `add_offset`) and the HDF5 Image and
    Palette Specification 1.2 (`IMAGE_WHITE_IS_ZERO`, `IMAGE_SUBCLASS`).
    """
    declared = {name: np.ravel(attributes[name])[0] for name in ATTRIBUTES if name in attributes}
    subclass = declared.get("IMAGE_SUBCLASS", b"")
    if "INDEXED" in (subclass.decode() if isinstance(subclass, bytes) else str(subclass)):
        image = replace(image, indexed=True)
    nodata, note = nodata_value(declared.get("_FillValue", declared.get("missing_value")), image.dtype)
    scaled = (declared.get("scale_factor", 1), declared.get("add_offset", 0)) != (1, 0)
    scale_note = "declares scale_factor or add_offset; the stored values are kept" if scaled else ""
    image = replace(image, nodata=nodata).with_notes(note, scale_note)
    return inverted(image, 8 * image.dtype.itemsize) if declared.get("IMAGE_WHITE_IS_ZERO", 0) else image


def fill_nodata(image: LazyImage, rule: NodataRule) -> LazyImage:
    """The image with `rule.fill` where the file declares "no data".

    Reading raises a `UserError` for such pixels where there is no `fill`, or one that is not a value of the dtype.
    """
    value = None if image.nodata in rule.data else image.nodata
    if value is None and image.valid is None:
        return image

    def read(index: Index) -> np.ndarray:
        part = image.read(index)
        missing = _missing(image, value, part, index)
        if not (n := np.count_nonzero(missing)):
            return part
        if rule.fill is None:
            meaning = "outside the mask of validity of the file" if value is None else f'{value}, which means "no data"'
            raise UserError(f"{n} pixels are {meaning}; {rule.advice}")
        if part.dtype.kind == "f":
            return np.where(missing, part.dtype.type(rule.fill), part)
        dtype = np.result_type(part.dtype, np.min_scalar_type(int(rule.fill)))
        if rule.fill % 1 or not (rule.widen or dtype == part.dtype):
            raise UserError(f"`not_finite: {rule.fill:g}` is not a value of {part.dtype}, the dtype of the file")
        return np.where(missing, dtype.type(rule.fill), part.astype(dtype, copy=False))

    mask_note = "" if image.valid is None else "has a mask of validity"
    fill_note = "" if rule.fill is None else f"such pixels become {rule.fill:g}"
    return replace(image, read=read, nodata=None, valid=None).with_notes(mask_note, fill_note)


def _missing(image: LazyImage, value: float | int | None, part: np.ndarray, index: Index) -> np.ndarray:
    missing = np.zeros(part.shape, bool)
    if value is not None:
        missing |= np.isnan(part) if value != value else part == value
    if image.valid is not None:
        y, x = image.axes.index("Y"), image.axes.index("X")
        remaining = [axis for axis, i in enumerate(index) if isinstance(i, slice)]
        shape = [n if axis in (y, x) else 1 for axis, n in zip(remaining, part.shape, strict=True)]
        missing |= ~image.valid((index[y], index[x])).astype(bool).reshape(shape)
    return missing
