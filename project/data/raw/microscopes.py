"""Readers of OME-Zarr folders and of the files of microscopes: Nikon ND2, Zeiss CZI, Leica LIF.

Their packages are the extra `formats`. A frame (a plane, of ND2 with its channels) is the least that is read, of CZI
also a part of one, of OME-Zarr the chunks that a part touches. Images of one file (scenes, series) are the axis P.
"""

import importlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from project.data.raw.lazy_image import Index, LazyImage
from project.errors import UserError, python

ZARR = ".zarr"  # a folder, also of names that end in .ome.zarr


def read_nd2(path: Path) -> LazyImage:
    """Nikon ND2."""
    nd2 = _package("nd2", "a Nikon ND2 file")
    with nd2.ND2File(path) as file:
        outer = {name: n for name, n in file.sizes.items() if name not in "CYXS"}
        sizes, dtype = outer | {name: n for name, n in file.sizes.items() if name in "CYXS"}, file.dtype

    def read(position: dict[str, int], index: Index) -> np.ndarray:
        with nd2.ND2File(path) as file:
            number = np.ravel_multi_index(list(position.values()), list(outer.values())) if outer else 0
            return np.array(file.read_frame(int(number))[index])

    return _from_frames(sizes, dtype, len(outer), read)


def read_lif(path: Path) -> LazyImage:
    """Leica LIF."""
    liffile = _package("liffile", "a Leica LIF file")
    with liffile.LifFile(path) as file:
        sizes, dtype = _common({image.name: (dict(image.sizes), image.dtype) for image in file.images})

    def read(position: dict[str, int], index: Index) -> np.ndarray:
        with liffile.LifFile(path) as file:
            return np.array(file.images[position.pop("P", 0)].frame(**position)[index])

    return _from_frames(sizes, dtype, sum(name not in "YXS" for name in sizes), read)


def read_czi(path: Path) -> LazyImage:
    """Zeiss CZI, in full resolution."""
    czifile = _package("czifile", "a Zeiss CZI file", " (Python 3.12 or newer)")
    with czifile.CziFile(path) as file:
        scenes = list(file.scenes)
        sizes, dtype = _common({str(scene): (dict(of.sizes), of.dtype) for scene, of in file.scenes.items()})

    def read(position: dict[str, int], index: Index) -> np.ndarray:
        y, x, *colors = index
        with czifile.CziFile(path) as file:
            image = file.scenes[scenes[position.pop("P", 0)]]
            left, top = image.bbox[:2]
            window = image(**position, roi=(left + x.start, top + y.start, x.stop - x.start, y.stop - y.start))
            return np.asarray(window.asarray()[(slice(None), slice(None), *colors)])

    image = _from_frames(sizes, dtype, sum(name not in "YXS" for name in sizes), read)
    return replace(image, reads_rows=True)


def read_zarr(path: Path) -> LazyImage:
    """OME-Zarr image in full resolution, or a plain Zarr array of the axes YX or CYX."""
    zarr = _package("zarr", "a Zarr folder")
    array, attributes = zarr.open(path, mode="r"), {}
    if not isinstance(array, zarr.Array):
        if not _multiscales(array) and "0" in array and len(list(array.groups())) <= 1 + ("OME" in array):
            array = array["0"]  # as of bioformats2raw, with one image
        if not (levels := _multiscales(array)):
            raise UserError("the Zarr folder is no OME-Zarr image; of a plate, link each image as a folder IMAGE.zarr")
        attributes, array = levels[0], array[levels[0]["datasets"][0]["path"]]
    names = [axis if isinstance(axis, str) else axis["name"] for axis in attributes.get("axes", ())]
    axes = "".join(names).upper() or ("TCZYX" if attributes else {2: "YX", 3: "CYX"}.get(array.ndim, "?" * array.ndim))
    if len(axes) != array.ndim:
        raise UserError(f"the axes {', '.join(names)} do not fit the array of shape {array.shape}")
    reads_rows = "Y" in axes and array.chunks[axes.index("Y")] < array.shape[axes.index("Y")]
    return LazyImage(array.shape, array.dtype, axes, lambda index: np.asarray(array[index]), reads_rows)


def _multiscales(group: Any) -> list[dict[str, Any]]:
    """What format 0.5 has below "ome", and older ones have directly."""
    attributes = dict(group.attrs)
    return list(attributes.get("ome", attributes).get("multiscales", ()))


def _package(name: str, kind: str, note: str = "") -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"is {kind}, which needs the package {name}{note}: {python()} -m pip install -e '.[formats]'"
        ) from error


def _common(images: dict[str, tuple[dict[str, int], np.dtype]]) -> tuple[dict[str, int], np.dtype]:
    """Axes and dtype of the images of a file by their names, with P first where there are several."""
    if not images:
        raise UserError("the file contains no image")
    sizes, dtype = next(iter(images.values()))
    if any(image != (sizes, dtype) for image in images.values()):
        listed = ", ".join(f"{name} {sizes} {dtype}" for name, (sizes, dtype) in images.items())
        raise UserError(f"the images of the file differ in shape or dtype; export them separately: {listed}")
    return ({"P": len(images)} if len(images) > 1 else {}) | sizes, np.dtype(dtype)


def _from_frames(
    sizes: dict[str, int], dtype: np.dtype, n_outer: int, read_frame: Callable[[dict[str, int], Index], np.ndarray]
) -> LazyImage:
    """Image whose axes after the first `n_outer` are a frame; `read_frame` reads a part of it at a position."""
    shape, axes = tuple(sizes.values()), "".join(sizes)
    if not {"Y", "X"} <= {*axes[n_outer:]} <= {*"CYXS"}:
        raise UserError(f'the file has the axes "{axes}", of which Y and X are not the last')

    def read(index: Index) -> np.ndarray:
        outer = [range(part.start, part.stop) for part in index[:n_outer]]
        positions = (dict(zip(axes, position, strict=False)) for position in itertools.product(*outer))
        frames = [read_frame(position, index[n_outer:]) for position in positions]
        return np.stack(frames).reshape(*map(len, outer), *frames[0].shape)

    has_colors = "S" in sizes and "C" not in sizes  # the samples of a color
    axes_named = axes.replace("S", "C") if has_colors else axes
    return LazyImage(shape, np.dtype(dtype), axes_named, read, has_colors=has_colors)
