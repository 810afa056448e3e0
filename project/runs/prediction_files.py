"""Predictions as files: TIFF and PNG with their provenance inside, and CSV tables."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from project.files import atomic_path, safe_file_name


def prediction_path(folder: Path, id_: str) -> Path:
    """Path of a sample's files without suffix: the parts of its id as folders, always below `folder`."""
    return folder.joinpath(*(safe_file_name(part, longest=150) for part in id_.split("/")))


def write_files(
    stem: Path,
    arrays: dict[str, np.ndarray],
    about: dict[str, Any] | None = None,
    channels: Sequence[str] = (),
    png: bool = False,
) -> list[Path]:
    """Write the files of one sample, each completely or not at all, and return their paths.

    Args:
        stem: Path without suffix; its folder is created.
        arrays: Suffix of the name -> (C, H, W) or (H, W).
        about: JSON values, stored in the description of a TIFF file and as text of a PNG file.
        channels: Names of the channels, for arrays with as many.
        png: Write (H, W) integers of 8 or 16 bits as PNG.
    """
    written = []
    for suffix, array in arrays.items():
        as_png = png and array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
        path = stem.with_name(f"{stem.name}{suffix}{'.png' if as_png else '.tif'}")
        has_names = array.ndim == 3 and len(array) == len(channels)
        description = {**(about or {}), **({"channels": list(channels)} if has_names else {})}
        with atomic_path(path) as temporary:
            if as_png:
                info = PngInfo()
                for key, value in description.items():
                    info.add_text(key, value if isinstance(value, str) else json.dumps(value))
                Image.fromarray(array).save(temporary, "PNG", pnginfo=info)
            else:
                is_label_map = array.ndim == 2 and array.dtype.kind == "u"
                tifffile.imwrite(
                    temporary,
                    array,
                    photometric="minisblack",
                    compression="zlib" if is_label_map else None,
                    metadata={"axes": "CYX"[3 - array.ndim :], **description},
                )
        written.append(path)
    return written


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV, completely or not at all; the columns are those of all rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
