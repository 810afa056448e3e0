"""What a long training holds: memory, open files, threads and processes, epoch by epoch."""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from growth import CONFIGS, _write_pairs
from harness import ROOT, Goal, Report, Table

EPOCHS = 200
# Found by `--trainer.callbacks`, as any file of the user's own in the working folder is.
WATCH = """
import csv, os, threading
from pathlib import Path
from lightning.pytorch import Callback

def processes(pid):
    found = [pid]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            found += processes(int(folder.name))
    return found

def held(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    # Of memory that forked processes share, each has its part.
    own = Path(f"/proc/{pid}/smaps_rollup").read_text().partition("Pss_Anon:")[2].split()[0]
    return int(own), len(os.listdir(f"/proc/{pid}/fd")), int(status.partition("Threads:")[2].split()[0])

class Watch(Callback):
    def on_train_epoch_end(self, trainer, task):
        found = processes(os.getpid())
        rows = [held(pid) for pid in found]
        sums = [sum(row[i] for row in rows) for i in range(3)]
        with open("watched.csv", "a", newline="") as file:
            csv.writer(file).writerow([trainer.current_epoch, *sums, len(found)])
"""


def measure(quick: bool) -> Report:
    """Tiny images for many epochs, read by a thread and by two processes; slopes over all but the first quarter."""
    epochs, report, rows = (8 if quick else EPOCHS), Report(), []
    with tempfile.TemporaryDirectory() as folder:
        _write_pairs(Path(folder) / "processed" / "tiny", 16, 32)
        for what, n_workers in (("a thread", "auto"), ("2 processes", "2")):
            watched = _watched(Path(folder), n_workers, epochs)
            steady = watched[len(watched) // 4 :]
            first, last = steady[0], steady[-1]
            growth = [_slope([row[0] for row in steady], [row[i] for row in steady]) for i in range(1, 5)]
            rows.append([what, last[1] / 1000, growth[0], *(n for i in (2, 3, 4) for n in (first[i], last[i]))])
            report.goals += [
                Goal(
                    f"{epochs} epochs, read by {what}: memory that is held in addition per epoch",
                    growth[0],
                    "≤ 20",
                    "kB",
                ),
                Goal(f"{epochs} epochs, read by {what}: open files, more per epoch", growth[1], "≤ 0.01"),
                Goal(f"{epochs} epochs, read by {what}: threads, more per epoch", growth[2], "≤ 0.01"),
                Goal(f"{epochs} epochs, read by {what}: processes, more per epoch", growth[3], "≤ 0.01"),
            ]
    columns = ["read by", "memory at the end, MB", "per epoch, kB"]
    columns += [
        f"{what}, {when}" for what in ("open files", "threads", "processes") for when in ("early", "at the end")
    ]
    note = (
        "16 images of 32 x 32 pixels; validation, a checkpoint and a line of history in each epoch. Counted are the "
        "training process and all that it started; memory without mapped files, and shared pages once. The slope is "
        "the median over all pairs of epochs after the first quarter (Theil and Sen); early is the first of these."
    )
    report.tables.append(Table(f"{epochs} epochs of a tiny training", columns, rows, note))
    return report


def _slope(x: list[float], y: list[float]) -> float:
    """Theil 1950 and Sen 1968: the median of the slopes of all pairs; single spikes do not count."""
    pairs = [(i, j) for j in range(len(x)) for i in range(j)]
    return statistics.median((y[j] - y[i]) / (x[j] - x[i]) for i, j in pairs)


def _watched(folder: Path, n_workers: str, epochs: int) -> list[list[float]]:
    """Of each epoch: its number, kB of memory, open files, threads, processes."""
    place = folder / n_workers
    (place / "configs").mkdir(parents=True)
    for name in CONFIGS:
        (place / "configs" / name).symlink_to(ROOT / "configs" / name)
    (place / "watch.py").write_text(WATCH)
    words = {
        "--data.dataset": "tiny",
        "--data.root": folder / "processed",
        "--data.crop": 32,
        "--data.batch_size": 4,
        "--data.num_workers": n_workers,
        "--trainer.max_epochs": epochs,
        "--trainer.accelerator": "cpu",
        "--trainer.callbacks": "watch.Watch",
        "--model.init_args.net.init_args.width": 4,
        "--logger": "none",
    }
    inherited = ("LOCAL_RANK", "PROJECT_RUN_FOLDER")
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "project", "train", "unet_mse", *(str(w) for pair in words.items() for w in pair)]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    with (place / "watched.csv").open(newline="") as file:
        return [[float(value) for value in row] for row in csv.reader(file)]
