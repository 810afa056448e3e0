"""Small pictures of single samples for the page of an inspection, as data URIs."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from project.data.inspection.figures import CUT, stretched
from project.data.store import SplitReader

SIDE = 132  # pixels of the longer side
MOST = 800_000  # bytes of one picture: five of them and the thumbnails stay below 8 MB as base64
QUALITIES = (88, 75, 60, 45, 30)


def thumbnail(reader: SplitReader, id_: str, role: str, channel: str | None = None) -> list[str]:
    """One sample as it is scaled by itself, and as the training images are, which shows how bright it is.

    Args:
        reader: The split that holds it.
        id_: Of the sample.
        role: "image" or "target"; anything else shows the input.
        channel: Which; None for the first, or for all three of a colour image.

    Returns:
        Data URIs: by its own percentiles, then, where the file has them, by those of training.
    """
    role = role if role in ("image", "target") else "image"
    array, names = reader.read(role, reader.ids.index(id_)), reader.channel_names(role)
    rgb = len(array) == 3
    at = names.index(channel) if channel in names else 0
    planes = array if rgb else array[at : at + 1]
    pictures = [stretched(planes)[0]]
    statistics = (reader.attributes.get("statistics") or {}).get(role)
    cuts = [c.get("percentiles") for c in statistics] if statistics else []
    cuts = cuts if rgb else cuts[at : at + 1]
    if cuts and all(cuts):
        ends = np.array([[c[f"{p:g}"] for p in CUT] for c in cuts])
        pictures.append(stretched(planes, ends)[0])
    return [_encode(picture) for picture in pictures]


def _encode(planes: np.ndarray) -> str:
    """(1 or 3, H, W) from 0 to 1, NaN in red -> data URI of at most SIDE pixels."""
    values = np.nan_to_num(planes if len(planes) == 3 else np.repeat(planes, 3, axis=0)) * 255
    pixels = values.round().astype(np.uint8).transpose(1, 2, 0).copy()
    pixels[np.isnan(planes).any(axis=0)] = 255, 0, 0
    picture = Image.fromarray(pixels)
    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # Enlarged pixels stay squares; small images are not to look blurred.
    return _uri(picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX), 80)


def file_uri(path: Path) -> str:
    """A picture in a file as data URI of at most MOST bytes before base64: as sharp as that allows."""
    with Image.open(path) as picture:
        coloured = picture.convert("RGB")
    text = ""
    for quality in QUALITIES:
        text = _uri(coloured, quality)
        if len(text) * 3 / 4 <= MOST:
            return text
    coloured.thumbnail((1600, 16000))
    return _uri(coloured, QUALITIES[-1])


def _uri(picture: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    # WebP is limited to 16383 pixels.
    kind = "webp" if max(picture.size) < 16000 else "jpeg"
    picture.save(file, kind, quality=quality)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
