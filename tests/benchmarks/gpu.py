"""One GPU: the shipped way of training a U-Net against the same step on a batch that never leaves the device.

`python3 tests/benchmarks gpu`, also where the project is not installed. A machine for deep learning mostly lacks the
wheels of segmentation-models-pytorch, albumentations, albucore, stringzilla, simsimd, pydantic, pydantic-core,
jsonargparse, docstring-parser, typeshed-client, importlib-resources, imagecodecs and hdf5plugin.
"""

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from harness import ROOT, Goal, Report, Table, alternate, ratio, write_dataset
from lightning.pytorch import Callback, Trainer

from project.data.datamodule import ImageDataModule
from project.losses import CrossEntropy
from project.tasks.segmentation import SegmentationTask
from project.transforms.device import DeviceGeometry

BATCH, CROP = 64, 256
ON_GPU = torch.cuda.is_available()


class Clock(Callback):
    """Seconds of all steps but the first third."""

    seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin."""
        if trainer.global_step == trainer.max_steps // 3:
            _wait()
            self.start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """End."""
        _wait()
        self.seconds = time.perf_counter() - self.start


class Repeated:
    """The same batch again and again."""

    def __init__(self, batch: Any, n: int) -> None:
        self.batch, self.n = batch, n

    def __iter__(self) -> Iterator[Any]:
        return iter([self.batch] * self.n)

    def __len__(self) -> int:
        return self.n


def _wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def _task(data: Any, quick: bool, augmented: bool) -> Any:
    net = smp.Unet("resnet18" if quick else "resnet34", encoder_weights=None, in_channels=2, classes=2)
    facts = {"statistics": data.statistics, "channels": data.channels, "classes": data.classes}
    geometry = DeviceGeometry() if augmented else None
    task = SegmentationTask(net=net, loss=CrossEntropy(), device_augmentation=geometry, **facts)
    task.configure_optimizers = lambda: torch.optim.AdamW(  # type: ignore[method-assign]
        task.parameters(), 1e-3, fused=ON_GPU
    )
    return task


def _steps(folder: Path, quick: bool) -> Report:
    batch, crop, steps = (2, 32, 4) if quick else (BATCH, CROP, 150)
    write_dataset(folder / "fields", {"train": 8 if quick else 2000, "val": 2}, 2 * crop, ("image", "mask"), 2)
    options = {"batch_size": batch, "crop": crop, "crops_per_image": 1 if quick else 8, "roles": ("image", "mask")}
    data = ImageDataModule("fields", str(folder), **options)
    tasks = {augmented: _task(data, quick, augmented) for augmented in (True, False)}
    data.setup("fit")
    first = next(iter(data.train_dataloader()))
    resident = {name: array.to("cuda" if ON_GPU else "cpu") for name, array in first.items()}

    def train(augmented: bool, precision: str, loader: Any = None) -> float:
        silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        off: dict[str, Any] = dict.fromkeys((*silent, "use_distributed_sampler"), False)
        off |= {"limit_val_batches": 0, "num_sanity_val_steps": 0}
        trainer = Trainer(
            "gpu" if ON_GPU else "cpu",
            devices=1,
            precision=precision,
            max_steps=steps,
            callbacks=[clock := Clock()],
            **off,
        )
        trainer.fit(tasks[augmented], **({"train_dataloaders": loader} if loader else {"datamodule": data}))
        return clock.seconds / (steps - steps // 3)

    variants = {
        "real loader, bf16, channels last, geometry on the device": lambda: train(True, "bf16-mixed"),
        "the same with a batch that stays on the device": lambda: train(
            True, "bf16-mixed", Repeated(resident, steps + 1)
        ),
        "float32, no geometry, a batch that stays on the device": lambda: train(
            False, "32-true", Repeated(resident, steps + 1)
        ),
    }
    seconds = alternate(variants, 1 if quick else 3)
    loader, stays, _ = variants
    goal = Goal("training with the real loader against a batch on the device", ratio(seconds, stays, loader), "≥ 0.95")
    rows = [[name, batch / statistics.median(taken)] for name, taken in seconds.items()]
    peak = f"; peak memory {torch.cuda.max_memory_allocated() / 1e9:.3g} GB" if ON_GPU else ""
    note = f"U-Net with ResNet-34, 2 x {crop} x {crop}, batch {batch}{peak}."
    return Report([goal], [Table("Training on one device", ["what", "samples/s"], rows, note)])


def _training(folder: Path) -> Table:
    """`unet_mse` on the demo data, from nothing to its metrics."""
    (folder / "configs").symlink_to(ROOT / "configs")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    start = time.perf_counter()
    words = ["train", "unet_mse", "--logger", "none", "--trainer.precision", "bf16-mixed"]
    subprocess.run([sys.executable, "-m", "project", *words], cwd=folder, env=environment, check=True)
    seconds = time.perf_counter() - start
    metrics = json.loads(next(folder.glob("runs/unet_mse/2*/metrics.json")).read_text())["metrics"]
    rows: list[list[Any]] = [["seconds, demo data and start included", seconds]]
    rows += [[name, metrics[name]] for name in ("r2", "pearson", "ssim")]
    return Table("`unet_mse` to its result", ["what", "value"], rows)


def measure(quick: bool) -> Report:
    """Samples per second through the Trainer: real loader, resident batch, float32; memory; a whole training."""
    if not ON_GPU and not quick:
        raise SystemExit("this benchmark needs a GPU; `--quick` tries on the CPU whether it runs")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        report = _steps(Path(folder), quick)
        report.tables += [] if quick else [_training(Path(folder))]
    return report
