"""Real signals to real processes, and runs that are trained again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from project.cli import main
from project.runs.run_folder import RUN_FOLDER_VARIABLE, Run

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
WORDS = [
    *("unet_mse", "--model.init_args.net.init_args", "{in_channels: 1, out_channels: 1, width: 4, depth: 1}"),
    *("--data.crop", "32", "--data.batch_size", "2", "--trainer.accelerator", "cpu", "--logger", "none"),
    *("--data.crops_per_image", "20", "--trainer.max_epochs", "3"),
]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in (RUN_FOLDER_VARIABLE, "LOCAL_RANK")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def run_project(*words: str, folder: Path, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "project", *words]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, **options
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_tiny):
    folder = tmp_path_factory.mktemp("signals")
    shutil.copytree(ROOT / "configs", folder / "configs")
    write_tiny(folder / "data/processed/yeast", shape=(40, 40))
    return folder


@pytest.fixture(scope="module")
def whole(place):
    done = run_project("train", *WORDS, folder=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return latest(place)


def latest(place: Path) -> Run:
    return Run((place / "runs/unet_mse/latest").resolve())


def stopped_by(number: int, place: Path) -> tuple[int, str]:
    """Train, and send a signal some time after the first epoch; returns exit status and errors."""
    before = set((place / "runs/unet_mse").glob("2*"))
    command = [sys.executable, "-m", "project", "train", *WORDS]
    process = subprocess.Popen(
        command, cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(600):
            new = set((place / "runs/unet_mse").glob("2*")) - before
            if any((folder / "checkpoints/last.ckpt").exists() for folder in new) or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, errors


def same(run: Run, other: Run) -> None:
    mine, theirs = (torch.load(r.checkpoints / "last.ckpt", weights_only=True) for r in (run, other))
    assert all(torch.equal(mine["state_dict"][name], theirs["state_dict"][name]) for name in theirs["state_dict"])
    assert run.read("metrics.json")["metrics"] == other.read("metrics.json")["metrics"]
    cells = [
        [line.split(",")[:2] + line.split(",")[3:] for line in (r.folder / "history.csv").read_text().splitlines()]
        for r in (run, other)
    ]
    assert cells[0] == cells[1]


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.nightly),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.nightly),
    ],
)
def test_a_process_that_gets_a_signal_resumes_exactly(place, whole, number, status):
    code, errors = stopped_by(number, place)
    assert code == status, errors
    run = latest(place)
    assert run.folder != whole.folder
    if number != signal.SIGKILL:
        assert f"make train RESUME=runs/unet_mse/{run.folder.name}" in errors
    assert run.read("metrics.json")
    assert run.read("provenance.json")["status"] == ("started" if number == signal.SIGKILL else "interrupted")
    done = run_project("train", "unet_mse", "--resume", "latest", folder=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert latest(place).folder == run.folder
    same(run, whole)


@pytest.mark.nightly
def test_two_devices_stop_together_and_resume(place):
    words = [*WORDS, "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    whole_run = run_project("train", *words, folder=place)
    assert whole_run.returncode == 0, whole_run.stdout + whole_run.stderr
    reference = latest(place)
    before = set((place / "runs/unet_mse").glob("2*"))
    process = subprocess.Popen(
        [sys.executable, "-m", "project", "train", *words],
        cwd=place,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        for _ in range(900):
            new = set((place / "runs/unet_mse").glob("2*")) - before
            if any((folder / "checkpoints/last.ckpt").exists() for folder in new) or process.poll() is not None:
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    run = latest(place)
    done = run_project("train", "--resume", "latest", folder=place)
    assert done.returncode == 0, done.stdout + done.stderr
    mine, theirs = (torch.load(r.checkpoints / "last.ckpt", weights_only=True) for r in (run, reference))
    assert all(torch.equal(mine["state_dict"][name], theirs["state_dict"][name]) for name in theirs["state_dict"])


# The same numbers again -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_roles(tmp_path_factory, write_tiny):
    folder = tmp_path_factory.mktemp("deterministic")
    shutil.copytree(ROOT / "configs", folder / "configs")
    roles = ("image", "target", "mask", "instances")
    write_tiny(folder / "data/processed/yeast", shape=(64, 72), roles=roles, n_labels=3, n_values=1)
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["unet_dice", "resnet_ce"])
def test_experiments_can_be_deterministic_on_a_cpu(all_roles, monkeypatch, name):
    monkeypatch.chdir(all_roles)
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, "")
    words = [name, "--trainer.deterministic", "true", "--logger", "none", "--data.dataset", "yeast"]
    words += ["--data.crop", "32", "--data.batch_size", "4", "--trainer.accelerator", "cpu"]
    words += ["--trainer.max_steps", "2", "--model.init_args.pretrained", "null"]
    found = []
    for _ in range(2):
        assert main(["train", *words]) == 0
        path = Path("runs", name, "latest/checkpoints/last.ckpt")
        found.append(torch.load(path, weights_only=True)["state_dict"])
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.fixture(scope="module")
def repository(tmp_path_factory, write_tiny):
    """A repository with a commit, an uncommitted change, and a network in a file that is not tracked."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "configs", folder / "configs")
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


def in_repository(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # A checkout that is installed in the environment must not be found first.
    return subprocess.run(
        [sys.executable, "-m", "project", *words],
        cwd=folder,
        env={k: v for k, v in environment().items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_run_is_reproduced_from_its_folder(repository):
    net = {"class_path": "project.models.mine.Mine", "init_args": {"width": 4, "depth": 1}}
    words = [*WORDS, "--model.init_args.net", json.dumps(net), "--trainer.max_epochs", "1"]
    words = [word for word in words if word != "--model.init_args.net.init_args" and not word.startswith("{in_ch")]
    done = in_repository("train", *words, folder=repository)
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run((repository / "runs/unet_mse/latest").resolve())
    assert (run.folder / "untracked/project/models/mine.py").is_file()
    # Neither the change nor the untracked file is there any more, and the code has gone on.
    subprocess.run(["git", "checkout", "-q", "--", "project/models/unet.py"], cwd=repository, check=True)
    (repository / "project/models/mine.py").unlink()
    done = in_repository("reproduce", "unet_mse", folder=repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reproduced: all" in done.stdout
    assert (
        subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True, text=True).stdout.count("\n")
        == 1
    )
    # Another result is reported.
    metrics = run.read("metrics.json")
    metrics["metrics"]["mse"] *= 1.5
    (run.folder / "metrics.json").write_text(json.dumps(metrics))
    (run.folder / "changes.patch").unlink()
    done = in_repository("reproduce", str(run.folder), folder=repository)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not the same:" in done.stdout
    assert "mse:" in done.stdout


def test_other_data_is_told_before_anything_is_trained(repository, write_tiny):
    shutil.rmtree(repository / "data/processed/yeast")
    write_tiny(repository / "data/processed/yeast", shape=(40, 40), seed=3)
    done = in_repository("reproduce", "unet_mse", folder=repository)
    assert done.returncode == 2
    assert "has other content than when the run was trained" in done.stderr
