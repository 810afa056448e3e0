"""One GPU: the shipped way of training a U-Net against the same step on a batch that never leaves the device.

`python3 tests/benchmarks gpu`, also where the project is not installed. A machine for deep learning mostly lacks the
wheels of segmentation-models-pytorch, albumentations, albucore, stringzilla, simsimd, pydantic, pydantic-core,
jsonargparse, docstring-parser, typeshed-client, importlib-resources, imagecodecs and hdf5plugin.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import ROOT, Goal, Report, Table, alternate, ratio

BATCH, CROP = 64, 256


def measure(quick: bool) -> Report:
    """Samples per second through the Trainer: real loader, resident batch, float32; memory; a whole training."""
    import torch

    if not torch.cuda.is_available() and not quick:
        raise SystemExit("this benchmark needs a GPU; `--quick` tries on the CPU whether it runs")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        _steps(Path(folder), quick, report)
        if not quick:
            _training(Path(folder), report)
    return report


def _steps(folder: Path, quick: bool, report: Report) -> None:
    import torch
    from lightning.pytorch import Callback, Trainer

    from project.data.datamodule import ImageDataModule

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, crop, steps = (2, 32, 4) if quick else (BATCH, CROP, 150)
    _write(folder / "fields", 8 if quick else 2000, 2 * crop)
    data = ImageDataModule(
        "fields", str(folder), batch_size=batch, crop=crop, crops_per_image=1 if quick else 8, roles=("image", "mask")
    )
    tasks = {"ours": _task(data, quick, True), "plain": _task(data, quick, False)}
    data.setup("fit")
    resident = {name: each.to(device) for name, each in next(iter(data.train_dataloader())).items()}

    class Clock(Callback):
        """Seconds of all steps but the first few."""

        seconds, peak = 0.0, 0

        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == steps // 3:
                _wait(device)
                self.start = time.perf_counter()

        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            _wait(device)
            self.seconds = time.perf_counter() - self.start

    class Repeated:
        """The same batch again and again; it is on the device already."""

        def __iter__(self) -> Iterator[Any]:
            return iter([resident] * (steps + 1))

        def __len__(self) -> int:
            return steps + 1

    def train(task: Any, precision: str, loader: Any = None) -> float:
        clock = Clock()
        trainer = Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision=precision,
            max_steps=steps,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[clock],
        )
        trainer.fit(task, **({"train_dataloaders": loader} if loader else {"datamodule": data}))
        return clock.seconds / (steps - steps // 3)

    seconds = alternate(
        {
            "loader": lambda: train(tasks["ours"], "bf16-mixed"),
            "resident": lambda: train(tasks["ours"], "bf16-mixed", Repeated()),
            "float32": lambda: train(tasks["plain"], "32-true", Repeated()),
        },
        1 if quick else 3,
    )
    rates = {name: batch / float(np.median(each)) for name, each in seconds.items()}
    flops = _flops(tasks["ours"], resident)
    report.goals.append(
        Goal(
            "training with the real loader against a batch on the device",
            ratio(seconds, "resident", "loader"),
            "≥ 0.95",
        )
    )
    rows: list[list[Any]] = [
        ["real loader, bf16, channels last, geometry on the device", rates["loader"], rates["loader"] * flops / 1e12],
        ["the same with a batch that stays on the device", rates["resident"], rates["resident"] * flops / 1e12],
        ["float32, no geometry, a batch that stays on the device", rates["float32"], rates["float32"] * flops / 1e12],
    ]
    note = f"U-Net with ResNet-34, 2 x {crop} x {crop}, batch {batch}; {flops / 1e9:.3g} GFLOP per sample, both ways."
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e9
        limit = _matmul()
        rows.append([f"bf16 matrix product of 8192 (limit of the card); peak memory {peak:.3g} GB", "", limit])
    report.tables.append(Table("Training on one device", ["what", "samples/s", "TFLOP/s"], rows, note))


def _task(data: Any, quick: bool, augmented: bool) -> Any:
    import segmentation_models_pytorch as smp
    import torch

    from project.losses import CrossEntropy
    from project.tasks.segmentation import SegmentationTask
    from project.transforms.device import DeviceGeometry

    net = smp.Unet("resnet18" if quick else "resnet34", encoder_weights=None, in_channels=2, classes=2)
    task = SegmentationTask(
        net=net,
        loss=CrossEntropy(),
        statistics=data.statistics,
        channels=data.channels,
        classes=data.classes,
        device_augmentation=DeviceGeometry() if augmented else None,
    )
    task.configure_optimizers = lambda: torch.optim.AdamW(  # type: ignore[method-assign]
        task.parameters(), 1e-3, fused=torch.cuda.is_available()
    )
    return task


def _flops(task: Any, batch: dict[str, Any]) -> float:
    """Of one sample, forward and backward, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    task.to(batch["image"].device)
    two = task.normalize_input(batch["image"][:2])
    with FlopCounterMode(display=False) as counter:
        task.apply_net(two).sum().backward()
    return counter.get_total_flops() / 2


def _matmul() -> float:
    """TFLOP/s of a large matrix product in bf16."""
    import torch

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    seconds = []
    for _ in range(20):
        _wait("cuda")
        start = time.perf_counter()
        a @ a
        _wait("cuda")
        seconds.append(time.perf_counter() - start)
    return 2 * 8192**3 / min(seconds) / 1e12


def _training(folder: Path, report: Report) -> None:
    """`unet_mse` on the demo data, from nothing to its metrics."""
    place = folder / "training"
    place.mkdir()
    (place / "configs").symlink_to(ROOT / "configs")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    start = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "project",
        "train",
        "unet_mse",
        "--logger",
        "none",
        "--trainer.precision",
        "bf16-mixed",
    ]
    subprocess.run(command, cwd=place, env=environment, check=True)
    seconds = time.perf_counter() - start
    metrics = json.loads(next(place.glob("runs/unet_mse/2*/metrics.json")).read_text())["metrics"]
    rows: list[list[Any]] = [["seconds, demo data and start included", seconds]]
    rows += [[name, metrics[name]] for name in ("r2", "pearson", "ssim") if name in metrics]
    report.tables.append(Table("`unet_mse` to its result", ["what", "value"], rows))


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _write(folder: Path, count: int, side: int) -> None:
    """Fields of two channels with a mask."""
    from project.data.split_writer import write_split

    folder.mkdir()
    rng = np.random.default_rng(0)
    field = rng.poisson(150, (2, 2 * side, 2 * side)).astype(np.uint16)
    attributes: dict[str, Any] = {
        "channels": {"image": ["a", "b"]},
        "classes": {"mask": ["dark", "bright"]},
        "background": "dark",
        "split": {},
        "source": {"command": "python tests/benchmarks"},
    }
    for split, n in (("train", count), ("val", 2)):
        corners, ids = rng.integers(0, side, (n, 2)).tolist(), [f"{split}{i}" for i in range(n)]
        images = [field[:, y : y + side, x : x + side] for y, x in corners]
        arrays = {"image": images, "mask": [(image[0] > 150).astype(np.uint8) for image in images]}
        statistics = write_split(folder / f"{split}.h5", arrays, ids, ids, **attributes)
        attributes.setdefault("statistics", statistics)
