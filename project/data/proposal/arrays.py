"""Files with many samples each (NPZ, NPY, HDF5, IDX): which array holds the images, and which the labels or masks."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from project.data.config import given_split
from project.data.hdf5 import hdf5_shapes
from project.data.proposal.draft import Draft, ambiguous
from project.data.proposal.pixels import summary
from project.data.raw.arrays import HDF5, open_array
from project.errors import UserError, bullet_list

ARRAY_SUFFIXES = (".npz", ".npy", *HDF5, "-ubyte", "-ubyte.gz", ".idx", ".idx.gz")
ROLE_WORDS = {"image", "images", "x", "data", "input", "inputs", "y", "label", "labels", "target", "targets", "class"}
ROLE_WORDS |= {"mask", "masks", "instances", "idx1", "idx3", "ubyte", "set", "gt", "output", "outputs", "arr"}


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
    shapes = {name: shape for file in names for name, shape in _arrays(raw, file).items()}
    images = {name: shape for name, shape in shapes.items() if len(shape) in (3, 4) and min(shape) > 0}
    entries, used = [], set[str]()
    for image in sorted(images, key=lambda name: (_role_of(name), name)):
        if image in used:
            continue
        partners = [n for n in shapes if n not in used and n != image and shapes[n][:1] == shapes[image][:1]]
        partners = [n for n in partners if _key(n) == _key(image)] or (partners if len(images) == 1 else [])
        used |= {image, *partners}
        entries.append(_entry(raw, image, partners, shapes))
    if not entries:
        listed = bullet_list(f"{name}: {shape}" for name, shape in shapes.items())
        raise UserError(f"no array looks like images of shape (N, Y, X) or with channels:\n{listed}")
    if unused := [name for name in shapes if name not in used]:
        draft.notes.append(f"not used: {', '.join(unused)}")
    lengths = ", ".join(f"{entry['image']} {shapes[entry['image']]}" for entry in entries)
    draft.add("arrays", entries, f"arrays of samples: {lengths}; partners have the same name and length")
    draft.add("near_duplicates", "drop", "training images that look like one of val or test are left out, and listed")
    given = {given_split(entry.get("split", "")) for entry in entries}
    if given == {None}:
        split: dict[str, Any] = {"fractions": {"train": 0.7, "val": 0.15, "test": 0.15}, "seed": 0}
        reason = "each sample is its own group; for patients or days, add a table with a group"
    else:
        split, reason = {}, ("val" in given and "given splits") or "no val is given: it is taken from train"
    stratified = {"stratify": True} if all("label" in entry for entry in entries) else {}
    if split | stratified:
        draft.add("split", split | stratified, reason + "; equal shares of each class" * bool(stratified))


def _arrays(raw: Path, file: str) -> dict[str, tuple[int, ...]]:
    """Name of each array of a file, as in a data config -> its shape."""
    path = raw / file
    if path.suffix.lower() in HDF5:
        return {f"{file}:{key}": shape for key, shape in hdf5_shapes(path).items()}
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {f"{file}:{key}": archive[key].shape for key in archive.files if archive[key].dtype.kind in "biuf"}
    return {file: tuple(open_array(path).shape)}


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[^\W_]+", re.sub(r"\.(npz|npy|gz|h5|hdf5)\b", "", name))]


def _key(name: str) -> tuple[str, ...]:
    """What is left of a name without the words of a role."""
    return tuple(word for word in _words(name) if word not in ROLE_WORDS)


def _role_of(name: str) -> int:
    """0 for the name of images, 2 for that of labels, masks and targets, else 1."""
    found = {*_words(name.rpartition(":")[2])}
    return 0 if found & {"x", "image", "images", "input", "inputs"} else 2 if found & ROLE_WORDS else 1


def _entry(raw: Path, image: str, partners: list[str], shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    entry = {"image": image}
    for name in partners:
        if len(shapes[name]) <= 2:
            role = "label"
        else:
            file, _, key = name.partition(":")
            array = open_array(raw / file, key)
            planes = [np.asarray(array[i]) for i in np.linspace(0, len(array) - 1, 8).astype(int)]
            kind = summary([plane[None] if plane.ndim == 2 else plane[..., :1].T for plane in planes])["kind"]
            if kind == "unclear":
                raise ambiguous(
                    f"{name} may hold classes or object numbers.", {r: {r: name} for r in ("mask", "instances")}
                )
            role = {"image": "target"}.get(kind, kind)
        if role in entry:
            raise UserError(f"both {entry[role]} and {name} may be the {role} of {image}; remove one of them")
        entry[role] = name
    if split := next((word for word in _words(image) if given_split(word) or word == "t10k"), ""):
        entry["split"] = given_split(split) or "test"
    return entry
