"""Which batch fits, and what it costs."""

import re
from pathlib import Path

import pytest
import torch

from project.cli import main
from project.tasks.base import Task
from project.training import batch_size as batch
from project.training.batch_size import Trial, predict, search

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("fits", [1, 2, 3, 7, 100, 256, 700])
def test_search_finds_the_limit_to_an_eighth(fits):
    asked = []

    def attempt(n):
        asked.append(n)
        return Trial(n, 1.0, n) if n <= fits else None

    trials, failed = search(attempt, 10_000)
    found = max(trial.batch for trial in trials)
    assert found <= fits < failed
    assert failed - found <= max(1, found // 8)
    assert len(asked) == len(set(asked)) <= 16


def test_search_stops_at_the_samples_there_are_and_where_it_may_not_go_on():
    trials, failed = search(lambda n: Trial(n, 1.0, n), 21)
    assert [t.batch for t in trials] == [1, 2, 4, 8, 16, 21]
    assert failed is None
    trials, _ = search(lambda n: Trial(n, 1.0, n), 1000, lambda trials, n: n <= 4)
    assert [t.batch for t in trials] == [1, 2, 4]
    assert search(lambda n: None, 8) == ([], 1)


def test_the_line_is_through_the_large_batches():
    trials = [Trial(1, 1.0, 7e9), *(Trial(n, 1.0, 1e9 + n * 5e6) for n in (2, 4, 8, 16))]
    base, slope, largest = predict(trials, 3e9)
    assert (base, slope) == (pytest.approx(1e9), pytest.approx(5e6))
    assert largest == pytest.approx(400, abs=1)
    assert predict([Trial(n, 1.0, 1e9) for n in (1, 2, 4)], 3e9) is None


@pytest.fixture
def workplace(tmp_path, monkeypatch, write_tiny):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_tiny(tmp_path / "data/processed/yeast", shape=(64, 64))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_an_experiment_is_tried_and_leaves_nothing_behind(workplace, capsys):
    before = (ROOT / "configs/experiments/unet_mse.yaml").read_bytes()
    words = ["unet_mse", "--data.crop", "64", "--trainer.accelerator", "cpu", "--trainer.gradient_clip_val", "1"]
    assert main(["batch", *words]) == 0
    text = capsys.readouterr().out
    assert "samples of 1 x 64 x 64 on cpu, 32-true" in text
    assert re.findall(r"^ +(\d+) +[\d.]+ +[\d.]+ GB$", text, re.MULTILINE)[:3] == ["1", "2", "4"]
    assert "not tried but predicted" in text or "cannot be said" in text
    assert "make train EXP=unet_mse" in text
    assert not (workplace / "runs").exists()
    assert (ROOT / "configs/experiments/unet_mse.yaml").read_bytes() == before


def test_what_does_not_fit_is_no_error(workplace, capsys, monkeypatch):
    """As on a GPU, where the allocator says so."""

    def step(self, samples, index):
        if len(samples["image"]) > 5:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return training_step(self, samples, index)

    training_step = Task.training_step
    monkeypatch.setattr("project.tasks.base.Task.training_step", step)
    monkeypatch.setattr(batch, "_surely_fits", lambda trials, n, **_: True)
    monkeypatch.setattr(batch, "STEPS", 2)
    assert main(["batch", "unet_mse", "--data.crop", "32", "--trainer.accelerator", "cpu"]) == 0
    batches = re.findall(r"^ +(\d+) +[\d.]+ +[\d.]+ GB$", capsys.readouterr().out, re.MULTILINE)
    assert batches == ["1", "2", "4", "5"]


def test_other_errors_are_told_as_they_are(workplace, monkeypatch):
    def step(self, samples, index):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("project.tasks.base.Task.training_step", step)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(["batch", "unet_mse", "--data.crop", "32", "--trainer.accelerator", "cpu"])
    assert not torch.backends.cudnn.benchmark  # was set for the training


def test_a_baseline_has_no_batches(workplace, capsys):
    assert main(["batch", "baseline_mean"]) == 2
    assert "fitted, not trained" in capsys.readouterr().err


def test_a_container_counts(monkeypatch, tmp_path):
    files = {
        "/proc/meminfo": "MemTotal: 100 kB\nMemAvailable:   50000 kB\n",
        "/sys/fs/cgroup/memory.max": "30000000\n",
        "/sys/fs/cgroup/memory.current": "10000000\n",
    }
    monkeypatch.setattr(Path, "is_file", lambda self: str(self) in files)

    def read(self):
        if str(self) not in files:
            raise FileNotFoundError(self)
        return files[str(self)]

    monkeypatch.setattr(Path, "read_text", read)
    assert batch.free_memory() == 20_000_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert batch.free_memory() == 51_200_000
