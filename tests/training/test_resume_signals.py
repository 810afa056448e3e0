"""Real signals to real processes, and runs that are trained again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from shipped_configs import CONFIGS

from project.cli import main
from project.runs.run_folder import Run

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
WORDS = [
    *("unet_mse", "--model.init_args.net.init_args", "{in_channels: 1, out_channels: 1, width: 4, depth: 1}"),
    *("--data.crop", "32", "--data.batch_size", "2", "--trainer.accelerator", "cpu", "--logger", "none"),
    *("--data.crops_per_image", "20", "--trainer.max_epochs", "3"),
]


@pytest.fixture
def stopped(workplace, environment):
    """Trains in another process, and sends a signal after the first epoch; returns exit status, errors and the run."""

    def stop(number: int, *words: str, group: bool = False) -> tuple[int, str, Run]:
        before = set(Path("runs/unet_mse").glob("2*"))
        process = subprocess.Popen(
            [sys.executable, "-m", "project", "train", *WORDS, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            for _ in range(900):
                new = set(Path("runs/unet_mse").glob("2*")) - before
                if any((folder / "checkpoints/last.ckpt").exists() for folder in new) or process.poll() is not None:
                    break
                time.sleep(0.1)
            (os.killpg if group else os.kill)(process.pid, number)
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        return process.returncode, errors, latest()

    return stop


def latest() -> Run:
    return Run(Path("runs/unet_mse/latest").resolve())


def same(run: Run, other: Run) -> None:
    mine, theirs = (torch.load(r.checkpoints / "last.ckpt", weights_only=True)["state_dict"] for r in (run, other))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.nightly),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.nightly),
    ],
)
def test_a_process_that_gets_a_signal_resumes_exactly(stopped, history, number, status):
    assert main(["train", *WORDS]) == 0
    whole = latest()
    code, errors, run = stopped(number)
    assert code == status, errors
    assert run.folder != whole.folder
    if number != signal.SIGKILL:
        assert f"make train RESUME=runs/unet_mse/{run.folder.name}" in errors
    assert run.read("provenance.json")["status"] == ("started" if number == signal.SIGKILL else "interrupted")
    assert main(["train", "unet_mse", "--resume", "latest"]) == 0
    assert latest().folder == run.folder
    same(run, whole)
    assert run.read("metrics.json")["metrics"] == whole.read("metrics.json")["metrics"]
    assert history(run) == history(whole)


@pytest.mark.nightly
def test_two_devices_stop_together_and_resume(workplace, stopped, in_process):
    words = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    in_process(workplace, "train", *WORDS, *words)
    whole = latest()
    code, errors, run = stopped(signal.SIGINT, *words, group=True)  # as a terminal does
    assert code == 130, errors
    in_process(workplace, "train", "--resume", "latest")
    same(run, whole)


# The same numbers again -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory, write_tiny):
    """A repository with a commit, an uncommitted change, and a network in a file that is not tracked."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(CONFIGS, folder / "configs")
    shutil.copytree(ROOT / "project", folder / "project", ignore=shutil.ignore_patterns("__pycache__"))
    write_tiny(folder / "data/processed/yeast", shape=(40, 40))
    (folder / ".gitignore").write_text("/data/\n/runs/\n__pycache__/\n")
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "first")):
        subprocess.run(["git", *words], cwd=folder, check=True)
    unet = folder / "project/models/unet.py"
    unet.write_text(unet.read_text().replace("self.head(x)", "self.head(x) * 0.5"))
    (folder / "project/models/mine.py").write_text(
        "from project.models.unet import UNet\n\n\nclass Mine(UNet):\n    pass\n"
    )
    return folder


def test_a_run_is_reproduced_from_its_folder(repository, in_process):
    run_project = partial(in_process, repository, PYTHONPATH="")  # an installed checkout must not be found first
    net = {"class_path": "project.models.mine.Mine", "init_args": {"width": 4, "depth": 1}}
    words = ["--model.init_args.net", json.dumps(net), "--trainer.max_epochs", "1", "--data.crops_per_image", "1"]
    run_project("train", *WORDS[:1], *WORDS[3:], *words)
    run = Run((repository / "runs/unet_mse/latest").resolve())
    assert (run.folder / "untracked/project/models/mine.py").is_file()
    # Neither the change nor the untracked file is there any more.
    subprocess.run(["git", "checkout", "-q", "--", "project/models/unet.py"], cwd=repository, check=True)
    (repository / "project/models/mine.py").unlink()
    assert "reproduced: all" in run_project("reproduce", "unet_mse")
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True, text=True, check=True)
    assert worktrees.stdout.count("\n") == 1
    # Another result is reported.
    metrics = run.read("metrics.json")
    metrics["metrics"]["mse"] *= 1.5
    (run.folder / "metrics.json").write_text(json.dumps(metrics))
    (run.folder / "changes.patch").unlink()
    text = run_project("reproduce", str(run.folder), status=1)
    assert "not the same:" in text
    assert "mse:" in text
