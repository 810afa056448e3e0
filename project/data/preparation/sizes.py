"""What is done about images of different sizes: keep, crop, pad, resize or cut into tiles."""

from dataclasses import replace

import numpy as np
from skimage.measure import label
from skimage.transform import resize

from project.data.config import SizesConfig
from project.data.raw.samples import INTEGER_ROLES, Sample
from project.errors import UserError

Size = tuple[int, int]


def wanted_size(config: SizesConfig) -> Size:
    """(height, width) that images shall have."""
    assert config.size is not None
    height, width = (config.size, config.size) if isinstance(config.size, int) else config.size
    return height, width


def place(sample: Sample, size: Size, config: SizesConfig | None) -> list[Sample]:
    """What becomes of a sample: itself, its middle, or its tiles, as windows of the files.

    Args:
        sample: One image, or one window of it.
        size: Height and width of that image or window.
        config: See `SizesConfig`.

    Returns:
        Tiles have the ids `id@y0x0`, in the pixels of the file, and stay in the group of their image.

    Raises:
        UserError: The image is too small, or too large to be padded; the message does not name it.
    """
    if config is None or config.how in ("keep", "resize"):
        return [sample]
    (height, width), (h, w) = size, wanted_size(config)
    if config.how == "pad":
        if height > h or width > w:
            raise UserError(f"{height} x {width} pixels are more than {h} x {w}, to which images shall be padded")
        return [sample]
    if height < h or width < w:
        what = "tiles of" if config.how == "tile" else "a crop of"
        raise UserError(f"{height} x {width} pixels are too few for {what} {h} x {w}")
    y0, _, x0, _ = sample.window or (0, height, 0, width)
    if config.how == "crop":
        y, x = y0 + (height - h) // 2, x0 + (width - w) // 2
        return [replace(sample, window=(y, y + h, x, x + w))]
    return [
        replace(sample, id=f"{sample.id}@y{y0 + y}x{x0 + x}", window=(y0 + y, y0 + y + h, x0 + x, x0 + x + w))
        for y in starts(height, h, config.overlap)
        for x in starts(width, w, config.overlap)
    ]


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles begin that cover `length` pixels: as few as the overlap allows, the last one moved inwards."""
    count = 1 + -(-(length - tile) // (tile - overlap))
    return [min(i * (tile - overlap), length - tile) for i in range(count)]


def final_size(size: Size, config: SizesConfig | None) -> Size:
    """Height and width after `fit`, of what `place` gave."""
    return size if config is None or config.how == "keep" else wanted_size(config)


def fit(array: np.ndarray, role: str, config: SizesConfig | None, fill: int | None) -> np.ndarray:
    """Pad or resize one array of a sample, in its own dtype.

    Args:
        array: (C, H, W) for image and target, (H, W) for mask and instances.
        role: Which of these it is.
        config: See `SizesConfig`.
        fill: What padding of a mask holds; without it, and in images, the image goes on mirrored.

    Returns:
        (C, h, w) or (h, w). Images are interpolated linearly, with smoothing when they shrink; masks take the nearest.
    """
    if config is None or config.how not in ("pad", "resize"):
        return array
    h, w = wanted_size(config)
    if array.shape[-2:] == (h, w):
        return array
    if config.how == "pad":
        width = [(0, 0)] * (array.ndim - 2) + [(0, h - array.shape[-2]), (0, w - array.shape[-1])]
        if role == "mask" and fill is not None:
            return np.pad(array, width, constant_values=fill)
        padded = np.pad(array, width, mode="symmetric")
        return _renumbered(padded, array.shape) if role == "instances" else padded
    shape = (*array.shape[:-2], h, w)
    if role in INTEGER_ROLES:
        return resize(array, shape, order=0, preserve_range=True, anti_aliasing=False).astype(array.dtype)
    # float64 would take twice the memory.
    found = resize(array.astype(np.float32), shape, order=1, preserve_range=True, anti_aliasing=True)
    return (np.rint(found) if array.dtype.kind == "u" else found).astype(array.dtype)


def _renumbered(padded: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(h, w) object numbers whose mirror images get numbers of their own, unless they are joined to their originals."""
    parts = label(padded, connectivity=2)
    there = np.unique(parts[: shape[0], : shape[1]])
    mirrored = np.setdiff1d(np.unique(parts), there)
    highest = int(padded.max()) + len(mirrored)
    if highest > np.iinfo(padded.dtype).max:
        raise UserError(f"with the mirrored objects there are numbers up to {highest}, too many for {padded.dtype}")
    where = np.isin(parts, mirrored)
    padded[where] = highest - len(mirrored) + 1 + np.searchsorted(mirrored, parts[where])
    return padded
