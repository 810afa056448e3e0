"""How long answers and mistakes take, and the way from `make train` to the first step, each in a process of its own.

Imports are the work of one thread, and on a busy machine their time on the clock says more about the other
programs: what is compared is processor time, of one thread and of the processes that it starts; the clock stands
beside it.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harness import ROOT, Goal, Report, Table

ANSWERS = {
    "--help": ["--help"],
    "unknown command": ["trian"],
    "unknown experiment": ["train", "unet_mes"],
    "unknown dataset": ["data", "yaest"],
    "wrong option": ["data", "yeast", "--proceses", "2"],
    "misspelt key": ["train", "unet_mse", "--trainer.max_epoch", "3"],
    "unknown class": ["train", "unet_mse", "--model.init_args.net.class_path", "project.models.unet.Unet"],
}
STAGES = (
    *("imports", "configuration read and checked", "built", "data opened"),
    *("the checks of `make check` that take seconds", "run folder", "sanity validation"),
)
CHECKS = 4  # which of them is no start-up: without it the mistakes would be found after hours


def make_data(folder: Path, size: int) -> None:
    """Small pairs of images with blobs, prepared as a dataset of the name `set`."""
    import numpy as np
    import tifffile
    from rich.console import Console
    from scipy.ndimage import gaussian_filter

    from project.data.config import DatasetConfig, SplitConfig
    from project.data.preparation.prepare import prepare

    rng = np.random.default_rng(0)
    for index in range(60):
        image = 500 + 3000 * gaussian_filter(rng.random((size, size)), 3) + rng.normal(0, 9, (size, size))
        for role, array in (("image", image), ("target", gaussian_filter(image, 2))):
            path = folder / "raw" / role / f"{index:03d}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, array.astype(np.uint16))
    config = DatasetConfig(
        str(folder / "raw"),
        image={"image": "image/{id}.tif"},
        target={"target": "target/{id}.tif"},
        split=SplitConfig(by="id"),
        near_duplicates="ignore",
    )
    with Path("/dev/null").open("w") as nowhere:
        prepare("set", config, folder / "data/processed", Console(file=nowhere))


Mark = tuple[float, float]  # on the clock, and of the processor since the process began, in seconds


def mark() -> Mark:
    """Now."""
    return time.time(), sum(os.times()[:4])


def by_hand(size: int) -> list[Mark]:
    """What nobody can do without: imports, network, one step. Returns the time after the network and after the step."""
    import project  # noqa: F401 - sets how threads wait, as `train` does: decided when torch is loaded

    # isort: split
    import albumentations  # noqa: F401
    import lightning.pytorch  # noqa: F401
    import torch
    import torchmetrics  # noqa: F401

    from project.models.unet import UNet

    net = UNet(1, 1, width=16, depth=3).to(memory_format=torch.channels_last)
    built = mark()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    images = torch.randn(16, 1, size, size).contiguous(memory_format=torch.channels_last)
    torch.nn.functional.mse_loss(net(images), images).backward()
    optimizer.step()
    return [built, mark()]


def by_train(size: int) -> list[Mark]:
    """`python -m project train unet_mse`, stopped after its first step. Returns the time after each stage."""
    from project import cli

    marks: list[Mark] = []

    class Stop(BaseException):
        pass

    def marking(owner: object, name: str, before: bool = False) -> None:
        """Note the time when a method is first left, and when it is entered."""
        method, done = getattr(owner, name), []

        def marked(self, *args, **options):
            if before:
                marks.append(mark())
            result = method(self, *args, **options)
            if not done:
                done.append(marks.append(mark()))
            return result

        setattr(owner, name, marked)

    def stop(self, *args, **options):
        marks.append(mark())
        raise Stop

    from lightning.pytorch import Trainer
    from lightning.pytorch.cli import LightningCLI

    from project.tasks.base import Task
    from project.training import train
    from project.training.lightning_cli import ExperimentCLI

    marks.append(mark())
    marking(LightningCLI, "parse_arguments")
    marking(ExperimentCLI, "instantiate_classes")
    marking(train, "check_quickly", before=True)
    task_setup = Task.setup

    def setup(self, *args, **options):
        marks.append(mark())
        return task_setup(self, *args, **options)

    Task.setup = setup
    marking(Trainer, "_run_sanity_check")
    Task.on_train_batch_end = stop
    try:
        cli.main(
            ["train", "unet_mse", "--data.dataset", "set", "--data.crop", str(size), "--trainer.accelerator", "cpu"]
        )
    except Stop:
        return marks
    raise RuntimeError("the training ended before its first step")


def timed(folder: Path, *words: str) -> list[Mark]:
    """Seconds from the start of a process to each of its marks, with one thread."""
    start = time.time()
    command = [sys.executable, __file__, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=environment)
    return [(clock - start, processor) for clock, processor in json.loads(done.stdout.splitlines()[-1])]


def seconds(folder: Path, command: list[str]) -> float:
    """Of a whole process."""
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=False, cwd=folder)
    return time.perf_counter() - start


def _ratio(marks: dict[str, list[list[Mark]]], end: int) -> tuple[float, float]:
    """Of the training but its checks to the mark `end` by hand, by clock and processor: medians over the rounds."""
    pairs = list(zip(marks["train"], marks["hand"], strict=True))

    def without(ours: list[Mark], i: int) -> float:
        return ours[-1][i] - (ours[CHECKS][i] - ours[CHECKS - 1][i])

    clock, processor = (statistics.median(without(ours, i) / hand[end][i] for ours, hand in pairs) for i in (0, 1))
    return clock, processor


def _stages(names: Sequence[str], runs: list[list[Mark]]) -> list[list[str | int | float]]:
    """Seconds between one mark and the next, medians over the runs."""
    rows: list[list[str | int | float]] = []
    for position, name in enumerate(names):
        taken = [[run[position][i] - (run[position - 1][i] if position else 0.0) for run in runs] for i in (1, 0)]
        rows.append([name, *(statistics.median(values) for values in taken)])
    return rows


def measure(quick: bool) -> Report:
    """Answers of the front; `train unet_mse` against imports, network and a step by hand."""
    size, rounds = (32, 1) if quick else (128, 10)
    report = Report()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "configs").symlink_to(ROOT / "configs")
        make_data(folder, size)
        python, module = [sys.executable], [sys.executable, "-m", "project"]
        commands = {"python alone": [*python, "-c", "pass"]} | {k: [*module, *w] for k, w in ANSWERS.items()}
        found: dict[str, list[float]] = {key: [] for key in commands}
        for _ in range(rounds):
            for key, command in commands.items():
                found[key].append(seconds(folder, command))
        answers = {key: statistics.median(values) for key, values in found.items()}
        full = [*module, "train", "unet_mse", "--data.dataset", "set", "--help"]
        answers["for comparison: the help of LightningCLI"] = statistics.median(
            seconds(folder, full) for _ in range(1 if quick else 3)
        )
        marks: dict[str, list[list[Mark]]] = {"hand": [], "train": []}
        for turn in range(rounds):
            # Who begins changes: what runs second finds the files in memory.
            for which in ("hand", "train") if turn % 2 else ("train", "hand"):
                marks[which].append(timed(folder, which, str(size)))
    for key in ("--help", "unknown experiment", "misspelt key"):
        report.goals.append(Goal(f"`python -m project`, {key}: until it is answered", answers[key], "≤ 0.3", "s"))
    step, network = _ratio(marks, -1), _ratio(marks, 0)
    what = "`train unet_mse` until its first step but for the checks, processor time against"
    report.goals += [
        Goal(f"{what} imports and network by hand", network[1], "≤ 1.3"),
        Goal(f"{what} imports, network and a step by hand", step[1], "≤ 1.3"),
    ]
    report.tables.append(Table("Answers", ["what", "seconds"], [[key, value] for key, value in answers.items()]))
    stages = ("by hand: torch, lightning, torchmetrics, albumentations; network", "by hand: one step")
    rows = [
        *_stages(stages, marks["hand"]),
        *_stages([f"train: {stage}" for stage in (*STAGES, "first step")], marks["train"]),
    ]
    report.tables.append(
        Table(
            "From the command to the first step of `unet_mse`, on a CPU",
            ["what", "processor, s", "clock, s"],
            rows,
            f"On the clock the ratios are {network[0]:.2f} (imports and network) and {step[0]:.2f} (and a step). Most "
            "of the imports is torch itself, the SciPy, torchvision and matplotlib that torchmetrics loads (and "
            "Lightning loads torchmetrics), and the compiler of torch, which every optimizer loads.",
        )
    )
    return report


if __name__ == "__main__":
    print(json.dumps({"hand": by_hand, "train": by_train}[sys.argv[1]](int(sys.argv[2]))))
