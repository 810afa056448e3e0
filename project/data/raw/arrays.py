"""Samples of `arrays`: one for each position along the first axis of a file."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from project.data.config import ArrayConfig, DatasetConfig, given_split
from project.data.raw.images import FileRef, Pages
from project.data.raw.lazy_image import errors_mention, plain_dtype
from project.data.raw.patterns import channel_names, files_below, note_unread_files
from project.data.raw.readers import Array, open_array
from project.data.raw.samples import Problems, Sample, Source, nfc
from project.errors import UserError, did_you_mean

MAX_CHANNELS = 4  # an axis this short has the channels; images are not that small
Label = str | tuple[str, ...] | None


class ArraySource(Source):
    """One sample per position along the first axis of each entry of `arrays`.

    The id is the path of the image file without its suffix, the name of the array where the file holds several, and the
    position: "train-images-idx3-ubyte/00042", "set/train_images/00042". Files that are missing or unreadable, and
    arrays that do not fit each other, are problems.
    """

    def __init__(self, config: DatasetConfig) -> None:
        self.config, self.channels = config, channel_names(config)

    def samples(self, problems: Problems) -> Iterator[Sample]:
        """The samples of all entries."""
        config = self.config
        files = {file.partition(":")[0] for entry in config.arrays for file in entry.files().values()}
        note_unread_files(files_below(Path(config.raw)), set(files), [], config, problems)
        for entry in config.arrays:
            refs, lengths, labels = dict[str, FileRef](), dict[str, int](), list[Label]()
            for role, file in entry.files().items():
                try:
                    with errors_mention(file):
                        path, key = _path_and_key(Path(config.raw), file)
                        array = open_array(path, key)
                        axes = _axes(array, role, entry.axes)
                        lengths[role] = array.shape[axes.index("N")]
                        if role == "label":
                            labels = _labels(np.asarray(array[...]), config.class_names("label"))
                        else:
                            convert = config.convert if role == "image" else None
                            refs[role] = FileRef(path, axes, convert=convert, array=key)
                except UserError as error:
                    problems.add(file, str(error))
            if len(set(lengths.values())) > 1:
                counts = ", ".join(f"{role} {n}" for role, n in lengths.items())
                problems.add(entry.image, f"the numbers of samples differ: {counts}")
            elif len(refs) + bool(entry.label) * bool(labels) == len(entry.files()):
                yield from _samples(entry, refs, labels or [None] * lengths["image"])


def _path_and_key(raw: Path, file: str) -> tuple[Path, str]:
    """The path, and the name of the array in the file."""
    name, _, key = file.partition(":")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError("must be a path below the raw folder")
    if not (raw / name).is_file():
        raise UserError(f'does not exist below "{raw}".{did_you_mean(name, files_below(raw))}')
    return raw / name, key


def _axes(array: Array, role: str, axes: str | None) -> str:
    """The order of the axes in the file."""
    shape = tuple(array.shape)
    if role == "label":
        if array.dtype.kind not in "bui" or len(shape) not in (1, 2):
            raise UserError(f"labels must be integers of shape (N,), (N, 1) or (N, K), not {array.dtype} {shape}")
        return "NK"[: len(shape)]
    plain_dtype(np.empty(0, array.dtype))  # refuses text and the like
    if len(shape) == 3:
        axes = "NYX"
    elif len(shape) != 4:
        raise UserError(f"{role} needs axes (N, Y, X), or one more for channels; the shape is {shape}")
    elif axes is None:
        is_first, is_last = shape[1] <= MAX_CHANNELS, shape[3] <= MAX_CHANNELS
        if is_first == is_last:
            raise UserError(
                f"the axis of the channels is not clear from shape {shape}; set `axes: NYXC` or `axes: NCYX`"
            )
        axes = "NCYX" if is_first else "NYXC"
    if sorted(axes) != sorted("NYXC"[: len(shape)]):
        raise UserError(f'the array of shape {shape} does not have the axes "{axes}"; set NYXC or NCYX')
    if 0 in shape:
        raise UserError(f"the array of shape {shape} has no pixels")
    return axes


def _samples(entry: ArrayConfig, refs: dict[str, FileRef], labels: list[Label]) -> Iterator[Sample]:
    # Other suffixes remain: "t10k-images.idx3-ubyte" is a name with a dot.
    file, _, key = entry.image.partition(":")
    start = nfc(Path(re.sub(r"\.(npy|npz|gz|h5|hdf5|hdf|he5)$", "", file, flags=re.IGNORECASE), key).as_posix())
    split, width = given_split(entry.split or ""), len(str(len(labels) - 1))
    for position, label in enumerate(labels):
        pages: Pages = (("N", position), ("C", "channels"))
        images = {role: [replace(ref, pages=pages)] for role, ref in refs.items()}
        yield Sample(f"{start}/{position:0{width}d}", images, label=label, split=split)


def _labels(array: np.ndarray, names: list[str]) -> list[Label]:
    """Each label as the name of its class, or names where the array has a column for each class."""
    if array.ndim == 1 or array.shape[1] == 1:
        if array.size and array.min() < 0:
            raise UserError(f"labels are counted from 0, but the smallest is {array.min()}")
        numbers = array.ravel().astype(np.int64).tolist()
        if not names or any(name.isdecimal() for name in names):
            return [str(number) for number in numbers]
        return [names[number] if number < len(names) else f"number {number}" for number in numbers]
    if array.size and not np.isin(array, (0, 1)).all():
        raise UserError("labels with a column for each class must be 0 or 1")
    if len(names) != array.shape[1]:
        raise UserError(
            f"{array.shape[1]} columns need {array.shape[1]} class names, there are {len(names)}; name them as "
            "`classes: {label: [...]}`"
        )
    return [tuple(names[column] for column in np.flatnonzero(row)) for row in array]
