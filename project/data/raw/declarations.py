"""What a file declares about its values: colors, which end is white, pixels without data, orientation.

Every reader applies the same rules: a declaration is applied, refused, or kept as a note.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from project.data.raw.lazy_image import Index, LazyImage
from project.errors import UserError

ORIENTATION = 274  # EXIF and TIFF tag


@dataclass(frozen=True)
class NodataRule:
    """What happens to pixels with the value that a file declares as "no data"."""

    fill: float | None = None  # replaces them, `not_finite` or `ignore_index`; without it they are an error
    advice: str = ""  # what to do about that error
    data: tuple[int, ...] = ()  # values that are data although the file declares them as "no data"


ZERO = NodataRule(0)


def refuse_colors(name: str) -> None:
    """Raise the error for color spaces other than gray and RGB."""
    raise UserError(f'pictures of mode "{name}" are not supported; save it as gray or RGB')


def orientation_note(orientation: object) -> str:
    """Note on a file whose tag `ORIENTATION` asks for a rotation; "" where it does not."""
    return "" if orientation in (0, 1) else f"is kept as stored, not rotated as its orientation {orientation} asks"


def with_palette(image: LazyImage, palette: np.ndarray, is_display: bool = False) -> LazyImage:
    """The image with its color table, (K, 3).

    A table that only colors measured values for display (`is_display`, or a ramp from black to one color) is noted; a
    gray ramp changes nothing; any other makes the values indices into the table, `LazyImage.indexed`.
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
    result = replace(image, read=lambda index: image.read(index) ^ highest, nodata=nodata, inverted=bits > 1)
    return result.with_notes(note)


def with_nodata(image: LazyImage, declared: object) -> LazyImage:
    """The image with the declared value for "no data", a number or its text, if it is one of the dtype."""
    if declared is None:
        return image
    text = str(declared).strip(" \0")
    try:
        number = float(text.replace(",", "."))
    except ValueError:
        return image.with_notes(f'declares "{text}" as "no data", which is not a number and is not used')
    note = f'declares {text} as "no data"'
    if image.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return replace(image, nodata=float(image.dtype.type(number))).with_notes(note)
    low, high = (0, 1) if image.dtype.kind == "b" else (np.iinfo(image.dtype).min, np.iinfo(image.dtype).max)
    if not math.isfinite(number) or number % 1 or not low <= number <= high:
        return image.with_notes(f"{note}, which no pixel of {image.dtype} can have")
    return replace(image, nodata=int(number)).with_notes(note)


def fill_nodata(image: LazyImage, rule: NodataRule) -> LazyImage:
    """The image with `rule.fill` where the file declares "no data".

    Reading raises a `UserError` for such pixels where there is no `fill`, or one that is not a value of the dtype.
    """
    value = image.nodata
    if value is None or value in rule.data:
        return image

    def read(index: Index) -> np.ndarray:
        part = image.read(index)
        missing = np.isnan(part) if value != value else part == value
        if not (n := np.count_nonzero(missing)):
            return part
        if rule.fill is None:
            raise UserError(f'{n} pixels are {value}, which means "no data"; {rule.advice}')
        with np.errstate(invalid="ignore"):
            fill = np.asarray(rule.fill).astype(part.dtype)
        if part.dtype.kind != "f" and fill != rule.fill:
            raise UserError(f'{rule.fill:g}, which replaces "no data", is not a value of {part.dtype}')
        return np.where(missing, fill, part)

    note = "" if rule.fill is None else f"such pixels become {rule.fill:g}"
    return replace(image, read=read, nodata=None).with_notes(note)
