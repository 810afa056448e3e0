"""A small experiment that works, for checks of what a user can do wrong."""

import shutil
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import h5py
import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from project.checks.context import Context
from project.data.datamodule import ImageDataModule
from project.losses import CrossEntropy
from project.models.classifier import EncoderClassifier
from project.models.unet import UNet
from project.tasks.base import DATA_ATTRIBUTES, Task
from project.tasks.classification import ClassificationTask
from project.tasks.segmentation import SegmentationTask
from project.tasks.translation import TranslationTask

N = {"train": 24, "val": 8, "test": 4}
TASKS = {"translation": TranslationTask, "segmentation": SegmentationTask, "classification": ClassificationTask}
ARRAYS = {"translation": ("image", "target"), "segmentation": ("image", "mask"), "classification": ("image",)}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, write_tiny) -> Callable[..., Path]:
    """Writes a dataset of a kind of task; one per combination of options."""
    written: dict[str, Path] = {}

    def write(kind: str, **options: Any) -> Path:
        options = {"shape": (64, 64), "n": N, "roles": ARRAYS[kind], **options}
        options |= {"n_labels": 3} if kind == "classification" else {}
        if (key := repr(sorted(options.items()))) not in written:
            written[key] = write_tiny(tmp_path_factory.mktemp("checks") / "tiny", **options)
        return written[key]

    return write


@pytest.fixture
def experiment(dataset, tmp_path) -> Callable[..., Context]:
    """Builds an experiment that works, as `make check` sees it.

    `data`, `task` and `trainer` are options of these; others are of the dataset, as for `write_dataset`; or `folder` is
    prepared. `change` lists (split, array, function): that array of the file is replaced by `function(array)`.
    """

    def build(
        kind: str = "translation",
        net: torch.nn.Module | None = None,
        loss: torch.nn.Module | None = None,
        rate: float = 3e-3,
        optimizer: str = "torch.optim.AdamW",
        data: dict[str, Any] | None = None,
        task: dict[str, Any] | None = None,
        trainer: dict[str, Any] | None = None,
        change: tuple[tuple[str, str, Callable[[np.ndarray], np.ndarray]], ...] = (),
        folder: Path | None = None,
        **options: Any,
    ) -> Context:
        folder = folder or dataset(kind, **options)
        if change:
            folder = shutil.copytree(folder, tmp_path / f"changed{len(list(tmp_path.iterdir()))}")
        for split, name, function in change:
            with h5py.File(folder / f"{split}.h5", "r+") as file:
                file[name][...] = function(file[name][...])
        roles = (*ARRAYS[kind], *(["label"] if kind == "classification" else []))
        settings = {"batch_size": 4, "crop": 32, "roles": roles, **(data or {})}
        datamodule = ImageDataModule(folder.name, str(folder.parent), **settings)
        datamodule.setup("fit")
        torch.manual_seed(0)
        n_channels = len(datamodule.channels["image"])
        n_classes = len(datamodule.classes.get("label" if kind == "classification" else "mask", ()))
        if net is None and kind == "classification":
            net = EncoderClassifier(
                "resnet18", encoder_weights=None, in_channels=n_channels, classes=n_classes, depth=3
            )
        elif net is None:
            net = UNet(n_channels, n_classes if kind == "segmentation" else 1, 8, 1)
        loss = loss or (CrossEntropy() if kind != "translation" else torch.nn.MSELoss())
        accepted = {*signature(Task).parameters, *signature(TASKS[kind]).parameters}
        facts = {name: getattr(datamodule, name) for name in DATA_ATTRIBUTES if name in accepted}
        built = TASKS[kind](net, loss, **facts, **(task or {}))
        built.optimizer = {"class_path": optimizer, "init_args": {"lr": rate}}
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        options_of_trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, **quiet, **(trainer or {})}
        return Context(built, datamodule, pl.Trainer(**options_of_trainer), full=True)

    return build
