"""How long answers and mistakes take, and the way from `make train` to the first step, each in a process of its own.

Imports are the work of one thread, and on a busy machine their time on the clock says more about the other programs:
what is compared is processor time, of one thread and of the processes that it starts.
"""

import io
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
TRAIN = ["train", "unet_mse", "--data.dataset", "set"]


def make_data(folder: Path, size: int) -> None:
    """Small pairs of images, prepared as a dataset of the name `set`."""
    import tifffile
    from harness import samples
    from rich.console import Console

    from project.data.config import DatasetConfig, SplitConfig
    from project.data.preparation.prepare import prepare

    roles = ("image", "target")
    for index, sample in enumerate(samples(60, size)):
        for role in roles:
            path = folder / "raw" / role / f"{index:03d}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, sample[role][0])
    patterns = {role: {role: f"{role}/{{id}}.tif"} for role in roles}
    config = DatasetConfig(str(folder / "raw"), **patterns, split=SplitConfig(by="id"), near_duplicates="ignore")
    prepare("set", config, folder / "data/processed", Console(file=io.StringIO()))


def processor_time() -> float:
    """Seconds of the processor, of this process and those that it has started."""
    return sum(os.times()[:4])


def by_hand(size: int) -> list[float]:
    """What nobody can do without: imports, network, one step. Returns the time after the network and after the step."""
    import project  # noqa: F401 - sets how threads wait, as `train` does: decided when torch is loaded

    # isort: split
    import albumentations  # noqa: F401
    import lightning.pytorch  # noqa: F401
    import torch
    import torchmetrics  # noqa: F401

    from project.models.unet import UNet

    net = UNet(1, 1, width=16, depth=3).to(memory_format=torch.channels_last)
    built = processor_time()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    images = torch.randn(16, 1, size, size).contiguous(memory_format=torch.channels_last)
    torch.nn.functional.mse_loss(net(images), images).backward()
    optimizer.step()
    return [built, processor_time()]


def by_train(size: int) -> list[float]:
    """`python -m project train unet_mse`, stopped after its first step: the time of its checks, and of all else.

    The checks are no start-up: without them mistakes would be found after hours.
    """
    from project import cli
    from project.tasks.base import Task
    from project.training import train

    class Stop(BaseException):
        pass

    check, checking = train.check_quickly, list[float]()

    def timed_check(*args, **options):
        before = processor_time()
        findings = check(*args, **options)
        checking.append(processor_time() - before)
        return findings

    def stop(*_args, **_options):
        raise Stop

    train.check_quickly, Task.on_train_batch_end = timed_check, stop
    try:
        cli.main([*TRAIN, "--data.crop", str(size), "--trainer.accelerator", "cpu", "--unchecked"])
    except Stop:
        return [checking[0], processor_time() - checking[0]]
    raise RuntimeError("the training ended before its first step")


def run_here(folder: Path, *words: str) -> list[float]:
    """What `by_hand` or `by_train` returns in a process with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=environment)
    return list(json.loads(done.stdout.splitlines()[-1]))


def seconds(folder: Path, words: Sequence[str], rounds: int) -> float:
    """Of a whole process, the median."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], capture_output=True, check=False, cwd=folder)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure(quick: bool) -> Report:
    """Answers of the front; `train unet_mse` against imports, network and a step by hand."""
    size, rounds = (32, 1) if quick else (128, 10)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "configs").symlink_to(ROOT / "configs")
        make_data(folder, size)
        answers = {key: seconds(folder, ["-m", "project", *words], rounds) for key, words in ANSWERS.items()}
        answers["for comparison: python alone"] = seconds(folder, ["-c", "pass"], rounds)
        answers["for comparison: the help of LightningCLI"] = seconds(folder, ["-m", "project", *TRAIN, "--help"], 1)
        runs = []
        for turn in range(rounds):
            # Who begins changes: what runs second finds the files in memory.
            order = ("hand", "train") if turn % 2 else ("train", "hand")
            taken = {which: run_here(folder, which, str(size)) for which in order}
            runs.append([*taken["hand"], *taken["train"]])
    names = ("--help", "unknown experiment", "misspelt key")
    goals = [Goal(f"`python -m project`, {key}: until it is answered", answers[key], "≤ 0.3", "s") for key in names]
    what = "`train unet_mse` until its first step but for the checks, processor time against imports"
    for i, more in enumerate(("and network by hand", "network and a step by hand")):
        goals.append(Goal(f"{what}, {more}", statistics.median(run[3] / run[i] for run in runs), "≤ 1.3"))
    labels = ("by hand: imports and network", "by hand: a step too", "train: checks", "train: all else to a first step")
    rows = [[label, statistics.median(run[i] for run in runs)] for i, label in enumerate(labels)]
    title = "From the command to the first step of `unet_mse`, on a CPU"
    tables = [Table("Answers", ["what", "seconds"], [[key, value] for key, value in answers.items()])]
    return Report(goals, [*tables, Table(title, ["what", "processor, s"], rows)])


if __name__ == "__main__":
    print(json.dumps({"hand": by_hand, "train": by_train}[sys.argv[1]](int(sys.argv[2]))))
