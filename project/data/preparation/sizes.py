"""Images of different sizes: keep, crop, pad, resize or cut them into tiles."""

from dataclasses import replace

import numpy as np
from skimage.transform import resize

from project.data.config import SizesConfig
from project.data.raw.samples import INTEGER_ROLES, Sample
from project.errors import UserError

Size = tuple[int, int]


def target_size(size: Size, config: SizesConfig | None) -> Size:
    """Height and width of what is written of a sample of this size."""
    if config is None or config.size is None:  # keep
        return size
    height, width = (config.size, config.size) if isinstance(config.size, int) else config.size
    return height, width


def cut_windows(sample: Sample, size: Size, config: SizesConfig | None) -> list[Sample]:
    """The sample itself, its center crop, or its tiles, as windows of the files.

    Tiles have the ids `id@y0x0`, in the pixels of the file, and stay in the group of their image. `size` is the height
    and width of the sample; a `UserError` that does not name it says that it is too small, or too large to be padded.
    """
    if config is None or config.how in ("keep", "resize"):
        return [sample]
    (height, width), (h, w) = size, target_size(size, config)
    if config.how == "pad":
        if height > h or width > w:
            raise UserError(f"{height} x {width} pixels are more than {h} x {w}, the size to pad to")
        return [sample]
    if height < h or width < w:
        raise UserError(f"{height} x {width} pixels are too few for a {config.how} of {h} x {w}")
    y0, _, x0, _ = sample.window or (0, height, 0, width)
    if config.how == "crop":
        y, x = y0 + (height - h) // 2, x0 + (width - w) // 2
        return [replace(sample, window=(y, y + h, x, x + w))]
    return [
        replace(sample, id=f"{sample.id}@y{y0 + y}x{x0 + x}", window=(y0 + y, y0 + y + h, x0 + x, x0 + x + w))
        for y in tile_starts(height, h, config.overlap)
        for x in tile_starts(width, w, config.overlap)
    ]


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Starts of the tiles that cover `length` pixels: as few as the overlap allows, the last one moved inwards."""
    count = 1 + -(-(length - tile) // (tile - overlap))
    return [min(i * (tile - overlap), length - tile) for i in range(count)]


def fit_to_size(array: np.ndarray, role: str, config: SizesConfig | None, fill: int | None) -> np.ndarray:
    """Pad or resize one array of a sample, in its own dtype: (C, H, W), or (H, W) of mask and instances.

    Padding repeats the last row and column, or takes the value `fill` for a mask. Resizing interpolates images
    linearly, with smoothing when they shrink; masks and instances take the nearest value.
    """
    if config is None or config.how not in ("pad", "resize"):
        return array
    h, w = target_size(array.shape[-2:], config)
    if array.shape[-2:] == (h, w):
        return array
    if config.how == "pad":
        width = [(0, 0)] * (array.ndim - 2) + [(0, h - array.shape[-2]), (0, w - array.shape[-1])]
        if role == "mask" and fill is not None:
            return np.pad(array, width, constant_values=fill)
        return np.pad(array, width, mode="edge")
    shape = (*array.shape[:-2], h, w)
    if role in INTEGER_ROLES:
        return resize(array, shape, order=0, preserve_range=True, anti_aliasing=False).astype(array.dtype)
    # float64 would take twice the memory.
    resized = resize(array.astype(np.float32), shape, order=1, preserve_range=True, anti_aliasing=True)
    return (np.rint(resized) if array.dtype.kind == "u" else resized).astype(array.dtype)
