"""Pseudo-labels: a dataset of labeled images and of images that a run labels with confidence, to train on again.

Lee (2013), Pseudo-Label, ICML workshop, in one round: where the run is not confident, pixels stay without annotation.
"""

import os
import re
import shutil
import tempfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from project.data.config import PROCESSED
from project.data.datamodule import ImageDataModule
from project.data.split_writer import SplitWriter
from project.data.statistics import SplitStatistics
from project.data.store import SplitReader
from project.errors import UserError
from project.inference.model import Model, load
from project.provenance import command, git_state, versions
from project.runs.run_folder import Run
from project.runs.untrusted import read_config

MIN_CONFIDENT = 0.5  # share of an image's pixels that must be confident
IGNORED = 255  # mask value of pixels without annotation, if the dataset has none
LABEL_ROLES = {"segmentation": "mask", "classification": "label"}
# Attributes of one file, not of its samples.
PER_FILE = {"content_hash", "format_version", "shards", "fold_statistics", "origin", "pseudo", "skipped", "notes"}


@dataclass
class LabeledImage:
    """An image of a data file with its label."""

    reader: SplitReader
    index: int
    id: str  # in the new dataset
    mask: bytes | None = None  # (H, W) predicted mask, compressed; None if the file's own mask or label counts
    label: Any = None  # predicted label; None as for `mask`


def pseudo_label(run: Run, threshold: float = 0.9, name: str | None = None, trusted: bool = False) -> Path:
    """Label images by a run, and write a dataset of these and of those that the run was trained on.

    Labeled are the images of unlabeled.h5 or, if the run was trained with a part of the labels
    (`data.labelled_fraction`), the other training images, whose labels are not read. Pixels with a probability below
    the threshold are not annotated; images with less than half of confident pixels, or without a confident class, are
    left out. Validation and test are links to those of the dataset. Normalization stays the same.

    Args:
        run: Of a segmentation or classification.
        threshold: Least probability that counts as confident.
        name: Of the new dataset, by default that of the old one with `_pseudo`; an earlier such dataset is replaced.
        trusted: Let the run's configuration name any code; see `project.runs.untrusted`.

    Returns:
        The folder of the new dataset.

    Raises:
        UserError: The run predicts no classes, there is nothing to label, the run is confident of nothing, the data is
            not that of the run, or the name is not a plain name or that of other data.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"the threshold is {threshold:g}; it is a probability, above 0 and at most 1")
    data = _data_with_classes(run)
    folder = _target_folder(name or f"{data.dataset}_pseudo", data)
    model = load(run.folder, trust=trusted)
    images = data.still_unlabelled()
    predicted, confident = _predict_labels(model, images, threshold)
    if not predicted:
        raise UserError(f"{run.name} is confident of none of {len(images)} images; lower the threshold")
    reader = data.reader("train")
    labeled = [LabeledImage(reader, index, id_) for index, id_ in enumerate(reader.ids)]
    known_ids = set(reader.ids)
    for sample in predicted:
        if sample.id in known_ids:  # two preparations may have given one name to two images
            sample.id = f"unlabelled/{sample.id}"
    facts: dict[str, Any] = {"n_unlabelled": len(images), "n_pseudo": len(predicted), "n_labelled": len(labeled)}
    facts |= {"sure": confident, "run": run.name, "weights": model.origin, "threshold": threshold}
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    partial.chmod(folder.parent.stat().st_mode & 0o777)  # `mkdtemp` lets nobody else in
    try:
        _write(partial / "train.h5", [*labeled, *predicted], data, facts)
        for split in ("val", "test"):
            if (data.folder / f"{split}.h5").is_file():
                _link(data.folder, split, partial)
        if _may_replace(folder):
            for path in folder.iterdir():  # what somebody else has put there
                if path.suffix != ".h5" and path.name != "inspect" and not (partial / path.name).exists():
                    path.rename(partial / path.name)
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def summary(folder: Path) -> str:
    """One line about a dataset of pseudo-labels."""
    facts = SplitReader(folder / "train.h5").attributes["pseudo"]
    confident = f", confident in {facts['sure']:.1%} of their pixels" if facts["sure"] is not None else ""
    return (
        f"{folder}: {facts['n_labelled']} labeled images, and {facts['n_pseudo']} of {facts['n_unlabelled']} labeled "
        f"by {facts['run']}{confident}"
    )


def data_of(run: Run) -> ImageDataModule:
    """The data of a run, with its share of the labels; UserError if it has changed since the training."""
    config, hashes = read_config(run.config), run.read_provenance().data_hash
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
        raise UserError(f'"{data.folder}" has been prepared again since {run.name} was trained; train again')
    return data


def _data_with_classes(run: Run) -> ImageDataModule:
    """The same, for a run that predicts classes."""
    if (task := run.read_provenance().task) not in LABEL_ROLES:
        raise UserError(f"{run.name} is of the task {task}, which predicts no classes; take {' or '.join(LABEL_ROLES)}")
    if "objects: boundary" in run.config.read_text(encoding="utf-8"):
        raise UserError(f"{run.name} learns the boundaries of objects, which a mask does not hold; take unet_dice")
    data = data_of(run)
    if data.fold is not None:
        raise UserError("pseudo-labels are for data without folds, with a separate file for validation")
    data.roles = ("image", LABEL_ROLES[task])
    return data


def _target_folder(name: str, data: ImageDataModule) -> Path:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f'"{name}" is no name of a dataset; use letters, digits, "_", "-" and "."')
    folder = data.folder.parent / name
    if folder.resolve() == data.folder.resolve():
        raise UserError(f'"{folder}" is the dataset itself; choose another name')
    _may_replace(folder)
    return folder


def _may_replace(folder: Path) -> bool:
    """Whether there is an earlier dataset of pseudo-labels to replace; UserError if there is something else."""
    if not os.path.lexists(folder):
        return False
    if folder.is_dir() and not folder.is_symlink() and (folder / "train.h5").is_file():
        with suppress(UserError):  # damaged: it is unknown what it was
            if SplitReader(folder / "train.h5").attributes.get("pseudo"):
                return True
    raise UserError(
        f'"{folder}" exists and is no dataset of pseudo-labels: it is not replaced. Choose another --name, or remove it'
    )


def _predict_labels(model: Model, images: SplitReader, threshold: float) -> tuple[list[LabeledImage], float | None]:
    """The images with a confident prediction; the share of confident pixels, for masks."""
    samples, shares = [], []
    multi_label, ignored = getattr(model.task, "multi_label", False), model.task.ignore_index
    ignored = IGNORED if ignored is None else ignored
    for index, id_ in enumerate(images.ids):
        p = model.estimate(images.read("image", index)).values[: model.task.n_classes]
        sample = LabeledImage(images, index, id_)
        confident = np.maximum(p, 1 - p).min(keepdims=True) >= threshold if multi_label else p.max(0) >= threshold
        if confident.mean() < MIN_CONFIDENT:
            continue
        if model.dense:
            shares.append(float(confident.mean()))
            mask = np.where(confident, p.argmax(0), ignored).astype(_mask_dtype(len(p), ignored))
            sample.mask = zlib.compress(mask.tobytes(), 1)
        else:
            sample.label = (p > 0.5).astype(np.int64) if multi_label else int(p.argmax())
        samples.append(sample)
    return samples, float(np.mean(shares)) if shares else None


def _mask_dtype(n_classes: int, ignored: int) -> np.dtype:
    return np.dtype(np.uint8 if max(n_classes - 1, ignored) <= 255 else np.uint16)


def _write(path: Path, samples: list[LabeledImage], data: ImageDataModule, facts: dict[str, Any]) -> None:
    whole, role = data.whole.attributes, data.roles[1]
    names, ignored = whole["classes"][role], IGNORED if data.ignore_index is None else data.ignore_index
    shapes = {"image": [s.reader.shapes["image"][s.index] for s in samples]}
    dtypes, labels, n_classes = {"image": data.whole.dtypes["image"]}, None, 0
    if role == "mask":
        shapes["mask"] = [shape[-2:] for shape in shapes["image"]]
        dtypes["mask"], n_classes = _mask_dtype(len(names), ignored), len(names)
    else:
        labels = np.array([s.reader.labels[s.index] if s.label is None else s.label for s in samples])  # type: ignore[index]
    statistics = SplitStatistics()
    ids, groups = [s.id for s in samples], [s.reader.groups[s.index] for s in samples]
    writer = SplitWriter(path, shapes, dtypes, ids, groups, labels, "none", n_classes, ignored)
    with writer:
        for i, sample in enumerate(samples):
            writer.write(i, "image", sample.reader.read("image", sample.index))
            if role == "mask":
                mask = None if sample.mask is None else np.frombuffer(zlib.decompress(sample.mask), dtypes["mask"])
                mask = sample.reader.read("mask", sample.index) if mask is None else mask.reshape(shapes["mask"][i])
                writer.write(i, "mask", mask.astype(dtypes["mask"]))
                statistics.add_mask(writer.pixels[i])
        counts = {key: value for key, value in statistics.summary(labels, names).items() if key in ("mask", "label")}
        changed = {
            "statistics": {"image": whole["statistics"]["image"], "n_samples": len(samples), **counts},
            "source": {"command": command(), **git_state(), "versions": versions()},
            "pseudo": facts,
            "origin": whole.get("origin", {name: whole[name] for name in ("split", "statistics")}),
        }
        if role == "mask":
            changed["ignore_index"] = ignored
        writer.finish({key: value for key, value in whole.items() if key not in PER_FILE} | changed)


def _link(folder: Path, split: str, target_folder: Path) -> None:
    """Link a split of another dataset, with the files that hold its pixels."""
    files = [name for name, _ in SplitReader(folder / f"{split}.h5").attributes.get("shards", [])]
    for file in (f"{split}.h5", *files):
        target, link = (folder / file).resolve(), target_folder / file
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.symlink_to(os.path.relpath(target, link.parent.resolve()))
        except OSError:  # a file system without links
            shutil.copy2(target, link)
