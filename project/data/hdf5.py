"""HDF5 files: errors in words, sizes that are checked before memory is taken, and datasets of any file."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py

from project.errors import UserError, python

# Errors of h5py, JSON and NumPy that a damaged file causes.
DAMAGED = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError)
# Errors of systems where another program holds a lock, or where a file system has none.
LOCKED = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def explained_errors(path: Path) -> Iterator[None]:
    """Explain errors: a file is called damaged only if the system itself gave no reason."""
    try:
        yield
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, OSError) and (error.errno in LOCKED or "already open for write" in reason):
            raise UserError(
                f'"{path}" cannot be opened: another program has it open for writing; close it there. If none '
                "has, the file system may lack locks: set the environment variable HDF5_USE_FILE_LOCKING=FALSE"
            ) from error
        if isinstance(error, OSError) and error.errno:
            raise UserError(f'"{path}" cannot be read: {os.strerror(error.errno)}') from error
        raise UserError(f'"{path}" is damaged or not a split file ({reason}); prepare it again') from error


def check_size(dataset: h5py.Dataset) -> h5py.Dataset:
    """The dataset; refused if it cannot be in its file, before memory is taken for it."""
    if dataset.chunks is None and dataset.nbytes > Path(dataset.file.filename).stat().st_size:
        raise ValueError(f"{dataset.name} of {dataset.shape} is larger than the file")
    return dataset


def blosc2_plugin() -> ModuleType:
    """hdf5plugin, an extra: importing it teaches HDF5 to read and write Blosc2."""
    try:
        return import_module("hdf5plugin")
    except ImportError:
        raise UserError(
            f"`compression: blosc2` needs the package hdf5plugin: `{python()} -m pip install hdf5plugin`"
        ) from None


def open_hdf5_dataset(path: Path, name: str) -> h5py.Dataset | None:
    """A dataset of any HDF5 file, or what a link leads to; None if there is none. The file stays open with it."""
    with suppress(UserError):  # only needed for files with its filters
        blosc2_plugin()
    dataset = h5py.File(path, "r").get(name)
    return dataset if isinstance(dataset, h5py.Dataset) else None


def hdf5_names(path: Path) -> list[str]:
    """The names of the datasets of numbers in an HDF5 file."""
    names: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf":
            names.append(name)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return names
