"""Files with many samples each (NPZ, NPY, HDF5, IDX): which array holds the images, and which the labels or masks."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from project.data.config import given_split
from project.data.proposal.draft import THREE_SPLITS, Draft, unclear
from project.data.proposal.pixels import summary
from project.data.proposal.words import word_set
from project.data.raw.lazy_image import errors_mention
from project.data.raw.readers import HDF5, array_names, open_array
from project.errors import UserError, bullet_list

ARRAY_SUFFIXES = (".npz", ".npy", *HDF5, "-ubyte", "-ubyte.gz", ".idx", ".idx.gz")
INPUTS = word_set("image images x input inputs")
ROLE_WORDS = INPUTS | word_set("data y label labels target targets class mask masks instances set gt output outputs")
NO_MEANING = word_set("npz npy gz h5 hdf5 idx idx1 idx3 ubyte arr")


def holds_samples(path: Path) -> bool:
    """Whether a file holds many samples; an NPY file of two axes, or of few channels, is one image."""
    if path.suffix.lower() != ".npy":
        return True
    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (OSError, ValueError):
        return False
    return len(shape) in (1, 4) or (len(shape) == 3 and shape[0] > 4 and shape[2] > 4)


def add_arrays(draft: Draft, raw: Path, names: list[str]) -> None:
    """The key `arrays`: an entry for each set of arrays that differ in name only by their role.

    Raises:
        UserError: Arrays do not fit together.
    """
    shapes = {name: shape for file in names for name, shape in _shapes(raw, file).items()}
    images = [name for name, shape in shapes.items() if len(shape) in (3, 4) and min(shape) > 0]
    entries, unused = list[dict[str, str]](), [*shapes]
    for image in sorted(images, key=lambda name: (not INPUTS & {*_words(name)}, _key(name) != _words(name), name)):
        if image in unused:
            same = [n for n in unused if n != image and shapes[n][:1] == shapes[image][:1]]
            partners = [n for n in same if _key(n) == _key(image)] or (same if len(images) == 1 else [])
            unused = [n for n in unused if n not in (image, *partners)]
            entries.append({"image": image} | _roles(raw, partners, shapes))
            if named := next((word for word in _words(image) if given_split(word) or word == "t10k"), ""):
                entries[-1]["split"] = given_split(named) or "test"
    if not entries:
        listed = bullet_list(f"{name}: {shape}" for name, shape in shapes.items())
        raise UserError(f"no array looks like images of shape (N, Y, X) or with channels:\n{listed}")
    lengths = ", ".join(f"{entry['image']} {shapes[entry['image']]}" for entry in entries)
    draft.add("arrays", entries, f"arrays of samples: {lengths}; partners have the same name and length")
    reason = (
        "training images that look like one of val or test, and val images that look like one of test, are left out"
    )
    draft.add("near_duplicates", "drop", reason)
    draft.notes += [f"not used: {name}" for name in unused]
    given = {entry["split"] for entry in entries if "split" in entry}
    split: dict[str, Any] = {"stratify": True} if all("label" in entry for entry in entries) else {}
    if not given:
        split |= THREE_SPLITS
        draft.notes.append("each sample is its own group; for patients or days, add a table with a group")
    if split:
        reason = "no val is given: it is taken from train" if given and "val" not in given else "three splits"
        draft.add("split", split, reason + "; equal shares of each class" * ("stratify" in split))


def _shapes(raw: Path, file: str) -> dict[str, tuple[int, ...]]:
    """Name of each array of a file, as in a data config -> its shape."""
    path = raw / file
    with errors_mention(file):
        if path.suffix.lower() not in (".npz", *HDF5):
            return {file: tuple(open_array(path).shape)}
        arrays = {f"{file}:{key}": open_array(path, key) for key in array_names(path)}
    return {name: tuple(array.shape) for name, array in arrays.items() if array.dtype.kind in "biuf"}


def _words(name: str) -> list[str]:
    return [word for word in re.findall(r"[^\W_]+", name.lower()) if word not in NO_MEANING]


def _key(name: str) -> list[str]:
    """What is left of a name without the words of a role."""
    return [word for word in _words(name) if word not in ROLE_WORDS]


def _roles(raw: Path, partners: list[str], shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Role -> array among those of one set: labels by their shape, masks by their values."""
    roles: dict[str, str] = {}
    for name in partners:
        role = "label"
        if len(shapes[name]) > 2:
            file, _, key = name.partition(":")
            array = open_array(raw / file, key)
            planes = [np.asarray(array[i]) for i in np.linspace(0, len(array) - 1, 8).astype(int)]
            role = summary([plane[None] if plane.ndim == 2 else plane[..., :1].T for plane in planes]).kind
        if role == "unclear":
            raise unclear(f"{name} may hold classes, or object numbers.", {"mask": name, "instances": name})
        role = {"image": "target"}.get(role, role)
        if role in roles:
            raise UserError(f"both {roles[role]} and {name} may be the {role} of the images; remove one of them")
        roles[role] = name
    return roles
