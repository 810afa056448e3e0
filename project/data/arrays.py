"""Files that hold many samples each: NPY, NPZ and IDX, the format of MNIST."""

import gzip
import math
import re
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from project.data.config import ArrayConfig, DatasetConfig, given_split
from project.data.images import ImageFile, naming, plain_dtype
from project.data.sources import Problems, Sample, read_table, table_label
from project.errors import UserError, listed, nearest

# Third byte of an IDX file: what each number is, most significant byte first.
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MOST_CHANNELS = 4  # an axis this short has the channels; images are not that small
Label = str | tuple[str, ...] | None


def find_array_samples(config: DatasetConfig) -> list[Sample]:
    """One sample per position along the first axis of each entry of `arrays`, each a group of its own.

    The id is the path of the image file without its suffix, the name of the array where the file holds several, and the
    position: "train-images-idx3-ubyte/00042", "set/train_images/00042".

    Raises:
        UserError: Files that are missing or unreadable, arrays or a table that do not fit each other; all
            offenders are listed.
    """
    raw = Path(config.raw)
    if not raw.is_dir():
        raise UserError(f'the raw folder "{raw}" does not exist; put your files there or set `raw` to where they are')
    problems, samples = Problems(), list[Sample]()
    for entry in config.arrays:
        arrays = {}
        for role, file in entry.files().items():
            try:
                with naming(file):
                    array = read_array(raw, file)
                    arrays[role] = _check_labels(array) if role == "label" else _images(array, role, entry.axes)
            except UserError as error:
                problems.add(str(error))
        lengths = {role: len(array) for role, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{role} {n}" for role, n in lengths.items())
            problems.add(f"{entry.image}: the numbers of samples differ: {told}")
        elif len(arrays) == len(entry.files()):
            samples += _samples(entry, arrays, config, problems)
    problems.stop_if_any("Some arrays cannot be used:")
    twice = [id_ for id_, n in Counter(sample.id for sample in samples).items() if n > 1]
    if twice:
        raise UserError(f"these ids come from two entries of `arrays`; rename one of the files:\n{listed(twice)}")
    return _with_table(samples, raw, config)


def read_array(raw: Path, file: str) -> np.ndarray:
    """The array in a file below `raw`; a plain NPY is mapped, the others are read as a whole.

    Raises:
        UserError: It does not exist, is not one of these kinds, or is damaged.
        Exception: It cannot be read; see `naming`.
    """
    name, _, key = file.partition(":")
    path = raw / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError("must be a path below the raw folder")
    if not path.is_file():
        there = sorted(p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file())
        raise UserError(f'does not exist below "{raw}".{nearest(name, there)}')
    if path.suffix.lower() == ".npz":
        return _read_npz(path, key)
    if key:
        raise UserError("only NPZ files hold arrays with names")
    if path.suffix.lower() == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    return read_idx(path)


def _read_npz(path: Path, key: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
        if not key and len(names) == 1:
            key = names[0]
        if key not in names:
            file = f"{path.name}:{names[0]}" if names else path.name
            raise UserError(f'say which array, as "{file}"; it holds {", ".join(names)}.{nearest(key, names)}')
        return archive[key]


def read_idx(path: Path) -> np.ndarray:
    """An IDX file, plain or with gzip (`.gz`): http://yann.lecun.com/exdb/mnist, "The IDX file format".

    Two zero bytes, the kind of number, the number of axes, the length of each axis as a big-endian uint32, the values.

    Raises:
        UserError: It is not an IDX file, or shorter or longer than its header says.
    """
    content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_DTYPES or not content[3]:
        raise UserError("this is not an NPY, NPZ or IDX file (plain or with gzip)")
    dtype, start = np.dtype(IDX_DTYPES[content[2]]), 4 + 4 * content[3]
    if len(content) < start:
        raise UserError("the file is cut off in its header")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise UserError(f"the file is damaged: shape {shape} needs {expected} bytes, there are {len(content)}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def _images(array: np.ndarray, role: str, axes: str | None) -> np.ndarray:
    """The array seen as (N, C, Y, X), without copying it."""
    plain_dtype(np.empty(0, array.dtype))  # refuses what is no image
    if array.ndim == 3:
        axes = "NYX"
    elif array.ndim != 4:
        raise UserError(f"{role} needs axes (N, Y, X), or one more for channels; the shape is {array.shape}")
    elif axes is None:
        axes = _inferred(array.shape)
    if len(axes) != array.ndim or sorted(axes) != sorted("NYXC"[: array.ndim]):
        raise UserError(f'the array of shape {array.shape} does not have the axes "{axes}"; take NYXC or NCYX')
    if 0 in array.shape:
        raise UserError(f"the array of shape {array.shape} has no pixels")
    wide = array if "C" in axes else array[..., None]
    return wide.transpose([(axes if "C" in axes else f"{axes}C").index(axis) for axis in "NCYX"])


def _inferred(shape: tuple[int, ...]) -> str:
    first, last = shape[1] <= MOST_CHANNELS, shape[3] <= MOST_CHANNELS
    if first == last:
        raise UserError(f"which axis of shape {shape} has the channels? Set `axes: NYXC` or `axes: NCYX`")
    return "NCYX" if first else "NYXC"


def _samples(
    entry: ArrayConfig, arrays: dict[str, np.ndarray], config: DatasetConfig, problems: Problems
) -> list[Sample]:
    labels: list[Label] = [None] * len(arrays["image"])
    if "label" in arrays:
        try:
            labels = _labels(arrays["label"], config.class_names("label"))
        except UserError as error:
            problems.add(f"{entry.label}: {error}")
            return []
    # Other suffixes stay: "t10k-images.idx3-ubyte" is a name with a dot.
    file, _, key = entry.image.partition(":")
    start = Path(re.sub(r"\.(npy|npz|gz)$", "", file, flags=re.IGNORECASE), key).as_posix()
    roles = [role for role in arrays if role != "label"]
    dtypes = {role: plain_dtype(np.empty(0, arrays[role].dtype)).dtype for role in roles}
    split, width, samples = given_split(entry.split or ""), len(str(len(labels) - 1)), []
    for position, label in enumerate(labels):
        id_ = f"{start}/{position:0{width}d}"
        opened = {role: _image(arrays[role], position, dtypes[role], id_) for role in roles}
        samples.append(Sample(id_, id_, {}, label, split=split, opened=opened))
    return samples


def _image(array: np.ndarray, position: int, dtype: np.dtype, id_: str) -> ImageFile:
    def read() -> np.ndarray:
        with naming(id_):
            return plain_dtype(array[position])

    return ImageFile(array.shape[1:], dtype, read)


def _check_labels(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "bui" or array.ndim not in (1, 2):
        raise UserError(
            f"labels are whole numbers of shape (N,), (N, 1) or (N, K), these are {array.dtype} {array.shape}"
        )
    return array


def _labels(array: np.ndarray, names: list[str]) -> list[Label]:
    """Each label as the name of its class, or names where the array has a column for each class."""
    if array.ndim == 1 or array.shape[1] == 1:
        if array.size and array.min() < 0:
            raise UserError(f"labels are counted from 0, but the smallest is {array.min()}")
        numbers = array.ravel().astype(np.int64).tolist()
        if not names:
            return [str(number) for number in numbers]
        return [names[number] if number < len(names) else f"number {number}" for number in numbers]
    if array.size and not np.isin(array, (0, 1)).all():
        raise UserError("labels with a column for each class are 0 or 1, these are not")
    if len(names) != array.shape[1]:
        raise UserError(
            f"{array.shape[1]} columns need {array.shape[1]} class names, there are {len(names)}; name them as "
            "`classes: {label: [...]}`"
        )
    return [tuple(names[column] for column in np.flatnonzero(row)) for row in array]


def _with_table(samples: list[Sample], raw: Path, config: DatasetConfig) -> list[Sample]:
    """The samples with the labels or groups of the table, if there is one."""
    if config.table is None:
        return samples
    rows, found = read_table(raw, config.table, [sample.id for sample in samples]), []
    for sample in samples:
        row = rows[sample.id]
        group = row[config.table.group] if config.table.group else sample.group
        label = table_label(row, config.table) if config.table.label else sample.label
        found.append(replace(sample, group=group, label=label))
    return found
