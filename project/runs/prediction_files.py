"""Predictions as files: TIFF with where they come from, PNG, and tables."""

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
    """Where the files of a sample lie, without their ending: as its id says, below the folder whatever it says."""
    return folder.joinpath(*(safe_file_name(part, longest=150) for part in id_.split("/")))


def write_files(
    place: Path,
    files: dict[str, np.ndarray],
    facts: dict[str, Any] | None = None,
    channels: Sequence[str] = (),
    png: bool = False,
) -> list[Path]:
    """Write the files of one sample, each at once or not at all.

    Args:
        place: Path without ending; its folder is made where there are files.
        files: Ending of the name -> (C, H, W) or (H, W).
        facts: Plain JSON that stands in each file: in the description of a TIFF file, as text in PNG.
        channels: Names of the channels of arrays with as many.
        png: Write (H, W) integers of 8 or 16 bits as PNG.

    Returns:
        The files, in that order.

    Raises:
        OSError: They cannot be written.
    """
    written = []
    for ending, array in files.items():
        as_png = png and array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
        path = place.with_name(f"{place.name}{ending}{'.png' if as_png else '.tif'}")
        named = list(channels) if array.ndim == 3 and len(array) == len(channels) else []
        about = {**(facts or {}), **({"channels": named} if named else {})}
        with atomic_path(path) as temporary:
            if as_png:
                info = PngInfo()
                for key, value in about.items():
                    info.add_text(key, value if isinstance(value, str) else json.dumps(value))
                Image.fromarray(array).save(temporary, "PNG", pnginfo=info)
            else:
                labels = array.ndim == 2 and array.dtype.kind == "u"
                tifffile.imwrite(
                    temporary,
                    array,
                    photometric="minisblack",
                    compression="zlib" if labels else None,  # numbers of objects, mostly alike
                    metadata={"axes": "CYX"[3 - array.ndim :], **about},
                )
        written.append(path)
    return written


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a CSV file at once; its columns are those of the first row, and whatever the others have besides.

    Raises:
        OSError: It cannot be written.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
