"""Predictions as files: TIFF with its provenance inside."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from project.files import atomic_path, safe_file_name


def prediction_path(folder: Path, id_: str) -> Path:
    """Path of a sample's files without suffix: the parts of its id as folders, always below `folder`."""
    return folder.joinpath(*(safe_file_name(part, longest=150) for part in id_.split("/")))


def write_files(
    stem: Path, arrays: dict[str, np.ndarray], about: dict[str, Any] | None = None, channels: Sequence[str] = ()
) -> list[Path]:
    """Write the files of one sample, each completely or not at all, and return their paths.

    Args:
        stem: Path without suffix; its folder is created.
        arrays: Suffix of the name -> (C, H, W) or (H, W).
        about: JSON values, stored in the description of the TIFF files.
        channels: Names of the channels, for arrays with as many.
    """
    written = []
    for suffix, array in arrays.items():
        path = stem.with_name(f"{stem.name}{suffix}.tif")
        has_names = array.ndim == 3 and len(array) == len(channels)
        is_label_map = array.ndim == 2 and array.dtype.kind == "u"
        description = {**(about or {}), **({"channels": list(channels)} if has_names else {})}
        with atomic_path(path) as temporary:
            tifffile.imwrite(
                temporary,
                array,
                photometric="minisblack",
                compression="zlib" if is_label_map else None,
                metadata={"axes": "CYX"[3 - array.ndim :], **description},
            )
        written.append(path)
    return written
