"""How many wrong labels stand at the top of the list of a report.

Labels of images are changed at random, a small ResNet is trained on folds by the commands, and the list is compared
with the plain way: how many of an image's nearest neighbours, by their pixels, have another label. Fashion-MNIST if its
files lie in data/raw/fashion_mnist (or where the variable FASHION_MNIST says), else scikit-learn's digits.
"""

import contextlib
import gzip
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from harness import ROOT, Goal, Report, Table
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

FASHION = Path(os.environ.get("FASHION_MNIST", ROOT / "data/raw/fashion_mnist"))
CHANGED = 0.05
NEIGHBOURS = 10


def images(n: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Name, images (n, H, W) uint8 and labels (n,)."""
    rng = np.random.default_rng(0)
    if (FASHION / "train-images-idx3-ubyte.gz").is_file():
        with gzip.open(FASHION / "train-images-idx3-ubyte.gz") as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        with gzip.open(FASHION / "train-labels-idx1-ubyte.gz") as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8)
        name = "Fashion-MNIST"
    else:
        digits = load_digits()
        pixels, labels = (digits.images * 15).astype(np.uint8), digits.target
        name = "scikit-learn's digits"
    chosen = rng.permutation(len(pixels))[:n]
    return name, pixels[chosen], labels[chosen].astype(np.int64)


def change(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which some are another class, any of the others being as likely, and which ones."""
    rng = np.random.default_rng(1)
    n_classes, changed = int(labels.max()) + 1, np.zeros(len(labels), bool)
    changed[rng.permutation(len(labels))[: round(CHANGED * len(labels))]] = True
    other = (labels + rng.integers(1, n_classes, len(labels))) % n_classes
    return np.where(changed, other, labels), changed


def experiment(n_classes: int, epochs: int, depth: int, batch_size: int) -> dict[str, Any]:
    """A small ResNet, without anything that would help it to believe wrong labels."""
    net = {"encoder_name": "resnet18", "encoder_weights": None, "in_channels": 1, "classes": n_classes, "depth": depth}
    return {
        "trainer": {"max_epochs": epochs},
        "checkpoint": {"monitor": "val/loss", "mode": "min"},
        "model": {
            "class_path": "project.tasks.classification.ClassificationTask",
            "init_args": {"net": {"class_path": "project.models.classifier.EncoderClassifier", "init_args": net}},
        },
        "data": {"dataset": "changed", "batch_size": batch_size, "eval_batch_size": 200},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "weight_decay": 5e-2}},
        "lr_scheduler": {"class_path": "project.optimizers.WarmupCosine", "init_args": {"warmup": 0.1}},
    }


def command(*words: str) -> None:
    """A command of the project, in this process: starting one takes as long as a small training."""
    from project.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as text:
        status = main(words)
    if status:
        raise RuntimeError(text.getvalue()[-2000:])


@contextlib.contextmanager
def working_folder() -> Iterator[Path]:
    """A temporary folder that is the working folder."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
            os.environ.pop("PROJECT_RUN_FOLDER", None)


def prepare(folder: Path, pixels: np.ndarray, labels: np.ndarray, n_folds: int, settings: dict[str, Any]) -> None:
    """A working folder with the data in folds, and one experiment."""
    for part in ("configs/data", "configs/experiments", "raw"):
        (folder / part).mkdir(parents=True)
    (folder / "configs/default.yaml").write_text((ROOT / "configs/default.yaml").read_text())
    np.savez(folder / "raw/set.npz", images=pixels, labels=labels)
    data = {
        "raw": "raw",
        "arrays": [{"image": "set.npz:images", "label": "set.npz:labels"}],
        "split": {"folds": n_folds, "fractions": {"test": 0.0}},
        "near_duplicates": "warn",
    }
    (folder / "configs/data/changed.yaml").write_text(yaml.safe_dump(data))
    (folder / "configs/experiments/small.yaml").write_text(yaml.safe_dump(settings))
    command("data", "changed")
    for fold in range(n_folds):
        command("train", "small", "--logger", "none", "--data.fold", str(fold), "--unchecked")


def found(order: np.ndarray, changed: np.ndarray, share: float) -> float:
    """Share of the changed labels that stand in the first part of a list."""
    return float(changed[order[: round(share * len(order))]].sum() / changed.sum())


def by_neighbours(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Images by how few of their nearest neighbours have their label."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float32)
    near = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(flat).kneighbors(flat, return_distance=False)[:, 1:]
    return np.argsort((labels[near] == labels[:, None]).mean(1), kind="stable")


def by_report(n: int) -> dict[str, np.ndarray]:
    """Images in the order of the list, and by how far the given label is behind the best other."""
    from project.results.mislabelled import suspects
    from project.runs.run_folder import find_run

    listed, _ = suspects(find_run("small"))
    assert len(listed) == n
    places = np.array([int(each.id.rpartition("/")[2]) for each in listed])
    margin = np.array([each.confidence - each.rival for each in listed])
    return {"list": places, "margin": places[np.argsort(margin, kind="stable")]}


def measure(quick: bool) -> Report:
    """Changed labels among the first 5 %, 10 % and 20 % of the lists."""
    n, n_folds, epochs, batch_size = (120, 2, 1, 16) if quick else (4000, 4, 8, 64)
    name, pixels, true = images(n)
    n = len(pixels)
    labels, changed = change(true)
    with working_folder() as folder:
        prepare(folder, pixels, labels, n_folds, experiment(int(true.max()) + 1, epochs, 3, batch_size))
        orders = by_report(n)
    orders["neighbours"] = by_neighbours(pixels, labels)
    what = f"{name}, {n} images of which {changed.sum()} have a wrong label"
    goals = [
        Goal(f"{what}: share of those in the first 5 % of the list", found(orders["list"], changed, CHANGED), "≥ 0.5")
    ]
    told = {
        "list": "the report's list: out of fold, probability of the given label",
        "margin": "out of fold, the same minus that of the best other",
        "neighbours": f"labels of the {NEIGHBOURS} nearest neighbours by pixels",
    }
    shares = (0.05, 0.1, 0.2)
    rows: list[list[str | int | float]] = [
        [told[key], *(found(order, changed, share) for share in shares)] for key, order in orders.items()
    ]
    note = f"{n_folds} folds, {epochs} epochs of a small ResNet each; by chance it would be the share of the list."
    columns = ["order", *(f"in the first {share:.0%}" for share in shares)]
    return Report(goals, [Table(f"Wrong labels that are found: {what}", columns, rows, note)])
