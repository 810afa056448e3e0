"""Files with many samples each (NPZ, NPY, HDF5, IDX): which arrays they hold, for the key `arrays`."""

from pathlib import Path

import numpy as np

from project.data.hdf5 import hdf5_shapes
from project.data.proposal.draft import unclear
from project.data.raw.array_files import HDF5, open_array
from project.errors import UserError, bullet_list

ARRAY_SUFFIXES = (".npz", ".npy", *HDF5, "-ubyte", "-ubyte.gz", ".idx", ".idx.gz")


def holds_samples(path: Path) -> bool:
    """Whether a file holds many samples; an NPY file of two axes, or of few channels, is one image."""
    if path.suffix.lower() != ".npy":
        return True
    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (OSError, ValueError):
        return False
    return len(shape) in (1, 4) or (len(shape) == 3 and shape[0] > 4 and shape[2] > 4)


def refuse_arrays(raw: Path, names: list[str]) -> UserError:
    """The error that lists the arrays, with lines for the key `arrays`: names and shapes do not tell their roles."""
    shapes = {name: shape for file in names for name, shape in _shapes(raw, file).items()}
    images = [name for name, shape in shapes.items() if len(shape) in (3, 4)]
    entries = []
    for image in images:
        labels = [name for name, shape in shapes.items() if shape[:1] == shapes[image][:1] and len(shape) < 3]
        entries.append({"image": image} | ({"label": labels[0]} if len(labels) == 1 else {}))
    listed = bullet_list(f"{name}: {shape}" for name, shape in shapes.items())
    return unclear(
        f"The files hold arrays of samples:\n{listed}\nSay which are `image`, `mask`, `instances`, `target`, `label`, "
        "and which `split` is given, one entry for each set of arrays.",
        {"arrays": entries},
    )


def _shapes(raw: Path, file: str) -> dict[str, tuple[int, ...]]:
    """Name of each array of a file, as in a data config -> its shape."""
    path = raw / file
    if path.suffix.lower() in HDF5:
        return {f"{file}:{key}": shape for key, shape in hdf5_shapes(path).items()}
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {f"{file}:{key}": archive[key].shape for key in archive.files if archive[key].dtype.kind in "biuf"}
    return {file: tuple(open_array(path).shape)}
