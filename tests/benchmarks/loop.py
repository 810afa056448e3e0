"""Training through the commands against a bare loop with the same network, loader, optimizer and precision.

After each step of the trainer comes one of the bare loop, so that both meet the same machine. A step of the trainer is
everything from one to the next: reading, hooks, logging, progress bar. What is done once in an epoch is timed call by
call.
"""

import contextlib
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import albumentations as A
import torch
from harness import ROOT, Goal, Report, Table, write_dataset
from lightning.pytorch import Callback, Trainer
from torch.nn import functional

from project.data.datamodule import ImageDataModule
from project.metrics.base import MetricCollection
from project.models.unet import UNet
from project.runs.run_folder import Run
from project.training import results_writer
from project.training.results_writer import ResultsWriter
from project.training.train import train
from project.transforms.intensity import IntensityAugmentation
from project.transforms.normalize import Normalize

# What is done once in an epoch: name -> method, and how often (best and last; figures in one epoch of five).
ONCE: dict[str, tuple[Any, str, float]] = {
    "checkpoints": (Trainer, "save_checkpoint", 2.0),
    "rows to metrics": (MetricCollection, "compute", 1.0),
    "metrics.json, samples/val.csv": (ResultsWriter, "_write", 1.0),
    "history.csv": (results_writer, "append_epoch", 1.0),
    "figures": (ResultsWriter, "_draw", 0.2),
}


class Clock(Callback):
    """Lets a bare step follow each step of the trainer, and notes how long both took."""

    bare: Iterator[None]
    steps: list[tuple[float, float]] = []  # noqa: RUF012

    def on_train_epoch_start(self, *_: Any) -> None:
        """What lies between epochs is no step."""
        self.mark: float | None = None

    def on_train_batch_end(self, *_: Any) -> None:
        """Everything between two calls but the bare step is the trainer's."""
        start = time.perf_counter()
        next(self.bare)
        end = time.perf_counter()
        if self.mark is not None:
            self.steps.append((start - self.mark, end - start))
        self.mark = time.perf_counter()


@contextlib.contextmanager
def timed(seconds: dict[str, list[float]]) -> Iterator[None]:
    """Time the calls of the methods in `ONCE`."""

    def wrapped(name: str, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                seconds[name].append(time.perf_counter() - start)

        return call

    with contextlib.ExitStack() as stack:
        for name, (owner, attribute, _) in ONCE.items():
            stack.enter_context(patch.object(owner, attribute, wrapped(name, getattr(owner, attribute))))
        yield


def bare(data: dict[str, Any], net: dict[str, Any], epochs: int) -> Iterator[None]:
    """A plain loop; each `next` is a step."""
    module = ImageDataModule(**data, transforms=[A.D4(p=1)])
    module.roles = ("image", "target")
    module.setup("fit")
    model = UNet(in_channels=1, out_channels=1, **net).to(memory_format=torch.channels_last).train()
    to_input, to_target = (Normalize(module.statistics[role], "mean_std") for role in ("image", "target"))
    intensity = IntensityAugmentation()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-4)
    loader = module.train_dataloader()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    total = torch.zeros(())
    for epoch in itertools.count():
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)
        for batch in loader:
            x = intensity(to_input(batch["image"])).contiguous(memory_format=torch.channels_last)
            loss = functional.mse_loss(model(x), to_target(batch["target"]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
            yield


def shipped(folder: Path, data: dict[str, Any], net: dict[str, Any], epochs: int) -> list[tuple[float, float]]:
    """`make train EXP=unet_mse`, with a bare step after each step; seconds of both."""
    Clock.steps, Clock.bare = [], bare(data, net, epochs)
    words = [
        *(f"--data.{key}={value}" for key, value in data.items()),
        f"--model.init_args.net.init_args={json.dumps({'in_channels': 1, 'out_channels': 1, **net})}",
        f"--trainer.max_epochs={epochs}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=true",
        "--trainer.callbacks=[{class_path: loop.Clock}]",
    ]
    run = Run(Path(tempfile.mkdtemp(dir=folder)) / "unet_mse" / "run")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(ROOT / "configs/experiments/unet_mse.yaml", words, run, "tensorboard", unchecked=True)
    return Clock.steps


def measure(quick: bool) -> Report:
    """The U-Net of `unet_mse` at batch 16 of 128 px, and a network of a few weights on crops of 16 px."""
    os.chdir(ROOT)
    once: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_dataset(folder / "data" / "set", {"train": 16, "val": 4}, 128, ("image", "target"))
        common = {"dataset": "set", "root": str(folder / "data")}
        unet = {"batch_size": 4, "crop": 64, "crops_per_image": 1}
        unet = unet if quick else {"batch_size": 16, "crop": 128, "crops_per_image": 20}
        tiny = {"batch_size": 4, "crop": 16, "crops_per_image": 3 if quick else 60}
        with timed(once):
            steps = shipped(folder, common | unet, {"width": 16, "depth": 3}, 2)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # nothing in the tiny network is worth dividing
        short = shipped(folder, common | tiny, {"width": 1, "depth": 1}, 1)
        torch.set_num_threads(threads)
    against, step = statistics.median(a / b for a, b in steps), statistics.median(b for _, b in steps)
    # The first call of each imports and sets up.
    per_epoch = {name: ONCE[name][2] * statistics.median(values[1:] or values) for name, values in once.items()}
    added = {n: 100 * (against - 1) + 100 * sum(per_epoch.values()) / (n * step) for n in (13, 100)}
    goals = [
        Goal("U-Net, a step of the trainer against a bare one", against, "≤ 1.02"),
        Goal("U-Net, all that is added to an epoch of 100 steps but validation", added[100], "≤ 2 %", "%"),
        Goal("tiny network, added to a step", 1e3 * statistics.mean(a - b for a, b in short), "≤ 1 ms", "ms"),
    ]
    note = (
        f"Of the figures, drawn in one of five epochs, a fifth. A bare step takes {1e3 * step:.0f} ms; in the short "
        f"epochs of the demo, 13 steps, all together is {added[13]:.1f} %."
    )
    rows = [[name, 1e3 * value] for name, value in per_epoch.items()]
    return Report(goals, [Table("Added to each epoch of the U-Net", ["what", "ms per epoch"], rows, note)])
