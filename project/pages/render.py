"""HTML pages from Jinja2 templates, and images as data URIs: a page is one file that loads nothing else."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from project.formatting import format_number, format_percent, shorten

THUMBNAIL = 132  # pixels of the longer side
WEBP_LIMIT = 16383  # pixels


def render(template: str, title: str, kind: str, heading: str, **values: Any) -> str:
    """A page by a template of this folder: title of the window, `kind` of page above its heading.

    The template shows `values`; all of it is text, in which markup is escaped.
    """
    # Autoescape: ids, channel and class names come from files of anybody.
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": format_number, "percent": format_percent, "shorten": shorten, "fact": _fact}
    page = environment.get_template(template)
    # `sections` collects the links: the macro `section` adds to it, and leaves out what is empty.
    return page.render(title=title, kind=kind, heading=heading, sections=[], **values)


def _fact(value: Any) -> str:
    """A value of a JSON file on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).strip("{}").replace('"', "")


def figure_uri(figure: Figure) -> str:
    """A matplotlib figure as data URI."""
    return _uri(Image.fromarray(figure_pixels(figure, 100)), quality=85)


def figure_pixels(figure: Figure, dpi: int) -> np.ndarray:
    """A matplotlib figure as (H, W, 3) uint8."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def thumbnail_uri(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 -> data URI of an image whose longer side has `THUMBNAIL` pixels."""
    image = Image.fromarray(pixels)
    scale = THUMBNAIL / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    # Enlarged pixels stay squares: small images must not look blurred.
    return _uri(image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX), quality=80)


def _uri(image: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    format = "webp" if max(image.size) <= WEBP_LIMIT else "jpeg"
    image.save(file, format, quality=quality)
    return f"data:image/{format};base64,{base64.b64encode(file.getvalue()).decode()}"
