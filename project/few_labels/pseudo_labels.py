"""Labels that a run gives to images without labels: a dataset of both, to train on once more.

Lee (2013), Pseudo-Label, ICML workshop, in one round: where the run is not sure it says nothing.
"""

import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from project import provenance
from project.data.config import PROCESSED
from project.data.datamodule import ImageDataModule
from project.data.split_writer import SplitWriter
from project.data.statistics import SplitStatistics
from project.data.store import SplitReader
from project.errors import UserError
from project.inference.model import Model, load
from project.runs import untrusted as trust
from project.runs.run_folder import Run

LEAST = 0.5  # share of the pixels of an image of which the run has to be sure
IGNORED = 255  # in masks, where the dataset itself has no value for it
# Attributes that belong to one file and not to its samples.
OWN = ("content_hash", "format_version", "shards", "fold_statistics", "origin", "pseudo", "skipped", "notes")


@dataclass
class _Labelled:
    """What is known of one image: a mask, packed as masks have few values, or a label."""

    reader: SplitReader
    index: int
    id: str
    packed: bytes = b""
    label: Any = None


def pseudo_label(
    run: Run, threshold: float = 0.9, name: str | None = None, root: Path | None = None, trusted: bool = False
) -> Path:
    """Let a run label images, and write a dataset of these and of those that it was trained on.

    Labelled are the images of unlabeled.h5 or, where the run was trained with a part of the labels
    (`data.labelled_fraction`), the other training images, at whose labels nothing looks. Pixels of which the run is not
    sure are not annotated; images of which it is sure in less than half of the pixels are left out, as are images
    whose class it is not sure of.

    Validation and test are those of the dataset, by links. Normalisation stays what it was.

    Args:
        run: Of a segmentation or classification.
        threshold: Probability from which on the run counts as sure.
        name: Of the new dataset; by default that of the old one with `_pseudo`.
        root: Where it is written; by default where the old one lies.
        trusted: Let the run's configuration name any code; see `project.runs.untrusted`.

    Returns:
        The folder of the new dataset; an earlier one of this name is replaced if it was made in the same way.

    Raises:
        UserError: The run gives no classes, there is nothing to label, the run is sure of nothing, the data is not
            that of the run, or the name is no plain name or that of data which was not made here.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"the threshold is {threshold:g}; it is a probability, above 0 and at most 1")
    data = _classes_of(run)
    final = _folder_of(name or f"{data.dataset}_pseudo", data, root)
    dense = data.roles[1] == "mask"
    model = load(run.folder, trust=trusted)
    found, told = _labels(model, data.still_unlabelled(), threshold, dense)
    if not found:
        raise UserError(f"{run.name} is sure of none of {told['n_unlabelled']} images; lower the threshold")
    reader = data.reader("train")
    own = [_Labelled(reader, index, id_) for index, id_ in enumerate(reader.ids)]
    known = set(reader.ids)
    for sample in found:
        if sample.id in known:  # two preparations may have given one name to two images
            sample.id = f"unlabelled/{sample.id}"
    facts = {**told, "run": run.name, "weights": model.origin, "threshold": threshold, "n_labelled": len(own)}
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
    partial.chmod(final.parent.stat().st_mode & 0o777)  # `mkdtemp` lets nobody else in
    try:
        _write(partial / "train.h5", [*own, *found], data, dense, facts)
        for split in ("val", "test"):
            if (data.folder / f"{split}.h5").is_file():
                _link(data.folder, split, partial)
        if _may_replace(final):
            _keep_other_files(final, partial)
            shutil.rmtree(final)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _folder_of(name: str, data: ImageDataModule, root: Path | None) -> Path:
    """Where the new dataset is written.

    Raises:
        UserError: The name could lead out of the folder of datasets, or something else is there.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f'"{name}" is no name of a dataset; use letters, digits, "_", "-" and "."')
    final = (root or data.folder.parent) / name
    if final.resolve() == data.folder.resolve():
        raise UserError(f'"{final}" is the dataset itself; choose another name')
    _may_replace(final)
    return final


def _may_replace(folder: Path) -> bool:
    """Whether there is an earlier dataset of pseudo-labels to replace.

    Raises:
        UserError: There is something else.
    """
    if not os.path.lexists(folder):
        return False
    train = folder / "train.h5"
    made_here = False
    if folder.is_dir() and not folder.is_symlink() and train.is_file():
        with suppress(UserError):  # damaged: nobody knows what it was
            made_here = bool(SplitReader(train).attributes.get("pseudo"))
    if not made_here:
        raise UserError(
            f'"{folder}" is there already, and is no dataset of pseudo-labels: it is not replaced. Choose another '
            "--name, or remove it"
        )
    return True


def _keep_other_files(folder: Path, new: Path) -> None:
    """Move into the new folder of a dataset what somebody else has put into the old one."""
    for path in folder.iterdir():
        if path.suffix != ".h5" and path.name != "inspect" and not (new / path.name).exists():
            path.rename(new / path.name)


def summary(folder: Path) -> str:
    """What a dataset of pseudo-labels holds, in a line."""
    facts = SplitReader(folder / "train.h5").attributes["pseudo"]
    sure = f", sure of {facts['sure']:.1%} of their pixels" if facts["sure"] is not None else ""
    return (
        f"{folder}: {facts['n_labelled']} labelled images, and {facts['n_pseudo']} of {facts['n_unlabelled']} with the "
        f"labels of {facts['run']}{sure}"
    )


def data_of(run: Run) -> ImageDataModule:
    """The data of a run, with its share of the labels; nothing but names and numbers of its configuration counts."""
    config, hashes = trust.read_config(run.config), run.read_provenance().data_hash
    section = config.get("data")
    if not isinstance(section, dict) or not isinstance(section.get("dataset"), str):
        raise UserError(f'"{run.config}" names no dataset; copy the run folder again')
    data = ImageDataModule(
        section["dataset"],
        str(section.get("root") or PROCESSED),
        fold=section.get("fold"),
        labelled_fraction=float(section.get("labelled_fraction") or 1),
        seed=int(config.get("seed_everything") or 0),
    )
    if hashes and hashes.get("train") != data.readers["train"].content_hash:
        raise UserError(f'"{data.folder}" has been prepared anew since {run.name} was trained; train again')
    return data


def _classes_of(run: Run) -> ImageDataModule:
    """The same, for a run that gives classes."""
    kinds = {"segmentation": "mask", "classification": "label"}
    if (task := run.read_provenance().task) not in kinds:
        raise UserError(f"{run.name} is of the task {task}, which gives no classes to be sure of; take a segmentation")
    if "objects: boundary" in run.config.read_text(encoding="utf-8"):
        raise UserError(f"{run.name} learns the rims of objects, which a mask does not hold; take unet_dice, say")
    data = data_of(run)
    if data.fold is not None:
        raise UserError("pseudo-labels are for data that is not divided into folds: validation has a file of its own")
    data.roles = ("image", kinds[task])
    return data


def _labels(model: Model, images: SplitReader, threshold: float, dense: bool) -> tuple[list[_Labelled], dict[str, Any]]:
    """The images of which a run is sure, with what it says of them."""
    found, shares = [], []
    ignored = _ignore_index(model.task.ignore_index)
    for index in range(len(images)):
        values = model.estimate(images.read("image", index)).values
        sample = _Labelled(images, index, images.ids[index])
        if dense:
            sure = values.max(0) >= threshold
            if (share := float(sure.mean())) < LEAST:
                continue
            shares.append(share)
            classes = np.where(sure, values.argmax(0), ignored).astype(_mask_dtype(len(values), ignored))
            sample.packed = zlib.compress(classes.tobytes(), 1)
        elif getattr(model.task, "multi_label", False):
            if np.maximum(values, 1 - values).min() < threshold:
                continue
            sample.label = (values > 0.5).astype(np.int64)
        elif values.max() < threshold:
            continue
        else:
            sample.label = int(values.argmax())
        found.append(sample)
    told = {"n_unlabelled": len(images), "n_pseudo": len(found), "sure": float(np.mean(shares)) if shares else None}
    return found, told


def _ignore_index(given: int | None) -> int:
    return IGNORED if given is None else given


def _mask_dtype(n_classes: int, ignored: int) -> np.dtype:
    return np.dtype(np.uint8 if max(n_classes - 1, ignored) <= 255 else np.uint16)


def _write(path: Path, samples: list[_Labelled], data: ImageDataModule, dense: bool, facts: dict[str, Any]) -> None:
    whole = data.whole.attributes
    names = whole["classes"]["mask" if dense else "label"]
    ignored = _ignore_index(data.ignore_index)
    shapes = {"image": [s.reader.shapes["image"][s.index] for s in samples]}
    dtypes = {"image": data.whole.dtypes["image"]}
    labels = None
    if dense:
        shapes["mask"] = [shape[-2:] for shape in shapes["image"]]
        dtypes["mask"] = _mask_dtype(len(names), ignored)
    else:
        labels = np.array([s.reader.labels[s.index] if s.label is None else s.label for s in samples])  # type: ignore[index]
    counted = SplitStatistics()
    groups = [s.reader.groups[s.index] for s in samples]
    ids, n_classes = [s.id for s in samples], len(names) if dense else 0
    writer = SplitWriter(path, shapes, dtypes, ids, groups, labels, "none", n_classes, ignored)
    with writer:
        for position, (image, mask) in enumerate(_arrays(samples, dtypes.get("mask"))):
            writer.write(position, "image", image)
            if mask is not None:
                writer.write(position, "mask", mask)
                counted.add_mask(writer.pixels[position])
        statistics = {
            **{"image": whole["statistics"]["image"], "n_samples": len(samples)},
            **{k: v for k, v in counted.summary(labels, names).items() if k in ("mask", "label")},
        }
        kept = {name: value for name, value in whole.items() if name not in OWN}
        source = {"command": provenance.command(), **provenance.git_state(), "versions": provenance.versions()}
        before = whole.get("origin", {name: whole[name] for name in ("split", "statistics")})
        own = {"statistics": statistics, "source": source, "pseudo": facts, "origin": before}
        writer.finish({**kept, **own, **({"ignore_index": ignored} if dense else {})})


def _arrays(samples: list[_Labelled], dtype: np.dtype | None) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Image and mask of each sample: what the run said, or what is known."""
    for sample in samples:
        image, mask = sample.reader.read("image", sample.index), None
        if sample.packed and dtype is not None:
            mask = np.frombuffer(zlib.decompress(sample.packed), dtype).reshape(image.shape[-2:])
        elif dtype is not None:
            mask = sample.reader.read("mask", sample.index).astype(dtype)
        yield image, mask


def _link(folder: Path, split: str, to: Path) -> None:
    """Let a split of another dataset stand here too, with the files that it takes its pixels from."""
    files = [name for name, _ in SplitReader(folder / f"{split}.h5").attributes.get("shards", [])]
    for file in (f"{split}.h5", *files):
        target, link = (folder / file).resolve(), to / file
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.symlink_to(os.path.relpath(target, link.parent.resolve()))
        except OSError:  # a file system without links
            shutil.copy2(target, link)
