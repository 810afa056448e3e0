"""Tiny trainings by the command line, in this process and in another one."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from project.cli import main
from project.runs.find_runs import find_run
from project.runs.run_folder import RUN_FOLDER_VARIABLE, Run

ROOT = Path(__file__).parents[2]
NET = ["--model.init_args.net.init_args", "{in_channels: 1, out_channels: 1, width: 4, depth: 1}"]
FIXED = ["--data.crop", "32", "--data.num_workers", "0", "--trainer.accelerator", "cpu", "--logger", "none"]


@pytest.fixture(scope="module")
def train(workplace, request):
    """Trains with a tiny network, the options `WORDS` of the test module and further ones; returns the latest run."""

    def run(*words: str, experiment: str = "unet_mse", net: Sequence[str] = NET, expect: int = 0) -> Run:
        assert main(["train", experiment, *net, *FIXED, *request.module.WORDS, *words]) == expect
        return Run(find_run(experiment).folder.resolve())

    return run


@pytest.fixture(scope="session")
def history():
    """Reads the rows of history.csv of a run, without their times."""

    def read(run: Run) -> list[dict[str, str]]:
        rows = csv.DictReader((run.folder / "history.csv").read_text().splitlines())
        return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

    return read


@pytest.fixture(scope="session")
def rates(history):
    """Reads the learning rates of a run."""
    return lambda run: [float(row["lr"]) for row in history(run)]


@pytest.fixture(scope="session")
def schedule():
    """Writes the option for a schedule."""

    def words(path: str, **arguments) -> list[str]:
        path = f"torch.optim.lr_scheduler.{path}" if "." not in path else path
        return ["--lr_scheduler", json.dumps({"class_path": path, "init_args": arguments})]

    return words


@pytest.fixture(scope="session")
def environment():
    """The environment for other processes, without what this one was given."""
    inherited = (RUN_FOLDER_VARIABLE, "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_PROCID")
    kept = {name: value for name, value in os.environ.items() if name not in inherited}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def in_process(environment):
    """Runs the project in another process, in a folder; returns what it printed."""

    def run(folder: Path, *words, status: int = 0, module: tuple[str, ...] = ("project",), **more: str) -> str:
        command = [sys.executable, *(part for name in module for part in ("-m", name)), *map(str, words)]
        done = subprocess.run(
            command, cwd=folder, env=environment | more, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run
