"""What a file declares about its values: colors, which end is white, pixels without data, orientation.

Every reader applies the same rules: a declaration is applied, refused, or kept as a note.
"""

from dataclasses import replace

import numpy as np

from project.data.raw.lazy_image import Index, LazyImage
from project.errors import UserError

ORIENTATION = 274  # EXIF and TIFF tag


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
    """The image of a file in which 0 is white, with 0 black."""
    if image.dtype.kind not in "bu":
        raise UserError(f"0 is white in the file, which has no meaning for {image.dtype}; save it with 0 as black")
    highest = image.dtype.type(2**bits - 1) if image.dtype.kind == "u" else np.True_
    note = "is stored with 0 as white; its values are inverted, so that 0 is black"
    # highest - value, for unsigned and bool
    result = replace(image, read=lambda index: image.read(index) ^ highest, inverted=bits > 1)
    return result.with_notes(note)


def with_nodata(image: LazyImage, declared: object) -> LazyImage:
    """The image with NaN where it is the value that the file declares as "no data"; integers are kept, with a note."""
    if declared is None:
        return image
    text = str(declared).strip(" \0")
    note = f'declares {text} as "no data"'
    if image.dtype.kind != "f":
        return image.with_notes(f"{note}; the values are kept")
    try:
        with np.errstate(over="ignore"):
            value = image.dtype.type(text.replace(",", "."))
    except ValueError:
        return image.with_notes(f"{note}, which is not a number and is not used")

    def read(index: Index) -> np.ndarray:
        part = image.read(index)
        return np.where(part == value, part.dtype.type(np.nan), part)

    return replace(image, read=read).with_notes(f"{note}; such pixels are NaN")
