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
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import albumentations as A
import numpy as np
import torch
from harness import ROOT, Goal, Report, Table, alternate, ratio
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from project.data.datamodule import ImageDataModule
from project.data.split_writer import write_split
from project.metrics.base import MetricCollection
from project.models.unet import UNet
from project.runs.run_folder import Run
from project.training import results_writer
from project.training.checkpoints import AtomicCheckpointIO
from project.training.results_writer import ResultsWriter
from project.training.train import train
from project.transforms.intensity import IntensityAugmentation
from project.transforms.normalize import Normalize

NETS = {"U-Net": {"width": 16, "depth": 3}, "tiny": {"width": 1, "depth": 1}}


def write_dataset(folder: Path, n: dict[str, int], size: int) -> None:
    """Blobs on an uneven background with the noise of a camera, and a target that is a function of them."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    attributes: dict[str, Any] = {
        "channels": {"image": ["bright field"], "target": ["fluorescence"]},
        "classes": {"mask": ["background", "cell"]},
        "background": "background",
        "ignore_index": None,
        "split": {},
    }
    for split, count in n.items():
        samples = []
        for _ in range(count):
            blobs = gaussian_filter(rng.random((size, size)), 4)
            blobs = np.clip((blobs - blobs.mean()) / blobs.std() - 0.8, 0, None)
            noise = rng.normal(0, 3, (2, size, size)) + 100
            image, target = 60 * blobs + noise[0] + 20 * gaussian_filter(rng.random((size, size)), 30), 90 * blobs**2
            sample = {
                "image": image[None].astype(np.uint16),
                "target": (target + noise[1])[None].astype(np.uint16),
                "mask": (blobs > 0).astype(np.uint8),
            }
            samples.append(sample)
        arrays = {role: [sample[role] for sample in samples] for role in samples[0]}
        ids = [f"{split}{i}" for i in range(count)]
        statistics = write_split(folder / f"{split}.h5", arrays, ids, ids, **attributes)
        attributes.setdefault("statistics", statistics)


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
def timed(parts: dict[str, tuple[Any, str]], found: dict[str, list[float]]) -> Iterator[None]:
    """Time the calls of methods, given as (class, name)."""

    def wrapped(name: str, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                found[name].append(time.perf_counter() - start)

        return call

    with contextlib.ExitStack() as stack:
        for name, (owner, attribute) in parts.items():
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


def shipped(folder: Path, data: dict[str, Any], net: dict[str, Any], epochs: int, *typed: str, logger: str) -> None:
    """`make train EXP=unet_mse`, with a bare step after each step."""
    Clock.steps, Clock.bare = [], bare(data, net, epochs)
    words = [
        *(f"--data.{key}={value}" for key, value in data.items()),
        f"--model.init_args.net.init_args={json.dumps({'in_channels': 1, 'out_channels': 1, **net})}",
        f"--trainer.max_epochs={epochs}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=true",
        "--trainer.callbacks=[{class_path: loop.Clock}]",
        *typed,
    ]
    run = Run(Path(tempfile.mkdtemp(dir=folder)) / "unet_mse" / "run")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(ROOT / "configs/experiments/unet_mse.yaml", words, run, logger, unchecked=True)


def added(steps: list[tuple[float, float]], block: int = 10) -> float:
    """Seconds that a step of the trainer takes more; the median over blocks, for some things are not in every step."""
    blocks = [steps[i : i + block] for i in range(0, max(len(steps) - block, 0) + 1, block)]
    return statistics.median(sum(ours - plain for ours, plain in each) / len(each) for each in blocks)


class Plain(LightningModule):
    """The same, with the loss as its only line."""

    def __init__(self, module: ImageDataModule, net: dict[str, Any]) -> None:
        super().__init__()
        self.net = UNet(in_channels=1, out_channels=1, **net).to(memory_format=torch.channels_last)
        self.to_input, self.to_target = (Normalize(module.statistics[r], "mean_std") for r in ("image", "target"))
        self.intensity = IntensityAugmentation()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The loss."""
        x = self.intensity(self.to_input(batch["image"])).contiguous(memory_format=torch.channels_last)
        return functional.mse_loss(self.net(x), self.to_target(batch["target"]))

    def configure_optimizers(self) -> Any:
        """As in the experiment."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def lightning_alone(folder: Path, data: dict[str, Any], net: dict[str, Any]) -> None:
    """Lightning's own loop with everything off, with a bare step after each step."""
    Clock.steps, Clock.bare = [], bare(data, net, 1)
    module = ImageDataModule(**data, transforms=[A.D4(p=1)])
    module.roles = ("image", "target")
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    off: dict[str, Any] = dict.fromkeys((*silent, "use_distributed_sampler"), False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_val_batches=0, default_root_dir=folder, callbacks=[Clock()], **off
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Plain(module, net), datamodule=module)


# What is done once in an epoch.
ONCE = {
    "checkpoints": (Trainer, "save_checkpoint"),
    "rows to metrics": (MetricCollection, "compute"),
    "metrics.json, samples/val.csv": (ResultsWriter, "_write"),
    "history.csv, line in the log": (results_writer, "append_epoch"),
    "pictures": (ResultsWriter, "_draw"),
}
# Best and last; pictures in one epoch of five.
CALLS = {"checkpoints": 2.0, "pictures": 0.2}


def checkpoints(report: Report, folder: Path, quick: bool) -> None:
    """How long training waits for a checkpoint of the size of a ResNet-18 U-Net with AdamW, 172 MB."""
    n = 1 if quick else 43
    state = {"global_step": 1, "state_dict": {f"layer{i}": torch.randn(1_000_000) for i in range(n)}}
    path, step = folder / "best.ckpt", itertools.count()

    def save(writer: TorchCheckpointIO) -> float:
        content = {**state, "global_step": next(step)}
        start = time.perf_counter()
        writer.save_checkpoint(content, path)
        seconds = time.perf_counter() - start
        writer.teardown()
        return seconds

    ours, plain = "written beside the old one", "torch.save"
    variants: dict[str, Callable[[], object]] = {
        ours: lambda: save(AtomicCheckpointIO()),
        "Lightning's own": lambda: save(TorchCheckpointIO()),
        plain: lambda: torch.save(state, path),
    }
    seconds = alternate(variants, rounds=1 if quick else 7)
    rows: list[list[str | int | float]] = [[name, 1e3 * statistics.median(each)] for name, each in seconds.items()]
    report.tables.append(Table(f"A checkpoint of {4 * n} MB", ["what", "ms"], rows))
    what = f"a checkpoint of {4 * n} MB that replaces the old one when it is complete, against torch.save"
    report.goals.append(Goal(what, ratio(seconds, ours, plain), "≤ 1.2"))


def measure(quick: bool) -> Report:
    """The U-Net of `unet_mse` at batch 16 of 128 px, and a network of a few weights on crops of 16 px."""
    os.chdir(ROOT)
    report = Report()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "runs").mkdir()
        write_dataset(folder / "data" / "set", {"train": 16, "val": 4}, 128)
        common = {"dataset": "set", "root": str(folder / "data")}
        unet = {**common, "batch_size": 4 if quick else 16, "crop": 64 if quick else 128}
        unet["crops_per_image"] = 1 if quick else 20
        tiny = {**common, "batch_size": 4, "crop": 16, "crops_per_image": 3 if quick else 60}
        once: dict[str, list[float]] = defaultdict(list)
        with timed(ONCE, once):
            shipped(folder / "runs", unet, NETS["U-Net"], 2, logger="tensorboard")
        steps = Clock.steps
        against = statistics.median(ours / plain for ours, plain in steps)
        step = statistics.median(plain for _, plain in steps)
        # The first call of each imports and sets up.
        each = {name: CALLS.get(name, 1.0) * statistics.median(v[1:] or v) for name, v in once.items()}
        hundred = 100 * (against - 1) + 100 * (sum(each.values()) / (100 * step))
        variants: dict[str, tuple[list[str], str]] = {
            "as shipped: TensorBoard, progress bar, checkpoints": ([], "tensorboard"),
            "without the progress bar": (["--trainer.enable_progress_bar=false"], "tensorboard"),
            "without TensorBoard and progress bar": (["--trainer.enable_progress_bar=false"], "none"),
        }
        found: dict[str, list[float]] = defaultdict(list)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # nothing here is worth sharing out
        for turn in range(1 if quick else 3):
            for name in list(variants)[turn:] + list(variants)[:turn]:
                typed, logger = variants[name]
                shipped(folder / "runs", tiny, NETS["tiny"], 1, *typed, logger=logger)
                found[name].append(1e3 * added(Clock.steps))
            lightning_alone(folder, tiny, NETS["tiny"])
            found["Lightning alone: a plain module, everything off"].append(1e3 * added(Clock.steps))
        torch.set_num_threads(threads)
    per_step = {name: statistics.median(values) for name, values in found.items()}
    report.goals = [
        Goal("U-Net, a step of the trainer against a bare one", against, "≤ 1.02"),
        Goal("U-Net, all that is added to an epoch of 100 steps but validation", hundred, "≤ 2 %", "%"),
        Goal("tiny network, added to a step", per_step[next(iter(variants))], "≤ 1 ms", "ms"),
    ]
    demo = 100 * (against - 1) + 100 * sum(each.values()) / (13 * step)
    report.tables = [
        Table("Added to each step of a tiny network", ["what", "ms"], [[k, v] for k, v in per_step.items()]),
        Table(
            "Added to each epoch of the U-Net",
            ["what", "ms per epoch"],
            [[name, 1e3 * value] for name, value in each.items()],
            f"Of the pictures, drawn in one of five epochs, a fifth. A bare step takes {1e3 * step:.0f} ms; in "
            f"the short epochs of the demo, 13 steps, all together is {demo:.1f} %.",
        ),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints(report, Path(scratch), quick)
    return report
