"""`make check` as a command, and the short form at the start of a training."""

import json
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from project.checks import network, preflight
from project.checks.verdicts import Report, Verdict
from project.cli import main
from project.demo import simulate_yeast
from project.runs.run_folder import RUNS, Run

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(p.stem for p in (ROOT / "configs/experiments").glob("*.yaml") if not p.stem.startswith("baseline"))
TINY = ["--model.init_args.net.init_args", "{in_channels: 1, out_channels: 1, width: 4, depth: 1}"]
SHORT = [
    *TINY,
    "--data.crop",
    "32",
    "--data.batch_size",
    "4",
    "--trainer.accelerator",
    "cpu",
    "--trainer.max_epochs",
    "1",
]


@pytest.fixture
def workplace(tmp_path, monkeypatch, write_tiny):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    write_tiny(
        tmp_path / "data/processed/yeast", shape=(64, 64), roles=("image", "target", "mask", "instances"), n_labels=3
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROJECT_RUN_FOLDER", raising=False)
    return tmp_path


def wrong_data(folder: Path) -> None:
    """Let two splits share a sample."""
    path = folder / "data/processed/yeast/val.h5"
    copied = shutil.copy(path, path.with_suffix(".copy"))  # readers may still hold the file
    with h5py.File(copied, "r+") as file:
        file["group"][0] = "train03"
    Path(copied).replace(path)


def test_command_tells_writes_and_draws(workplace, capsys):
    assert main(["check", "unet_mse", *SHORT]) == 0
    text = capsys.readouterr().out
    folder = next((workplace / "runs/checks/unet_mse").iterdir())
    report = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert report["safe"]
    assert {"name", "measured", "level", "advice"} == set(report["verdicts"][0])
    assert {v["name"] for v in report["verdicts"]} >= {"learning rate", "one batch", "memory", "alignment", "splits"}
    for verdict in report["verdicts"]:
        assert f"{verdict['level']:10}{verdict['name']}" in text
    assert report["pictures"] == ["sees.png", "learns.png"]
    assert all((folder / name).stat().st_size > 10_000 for name in report["pictures"])
    assert "safe to train" in text
    assert not list((workplace / "runs").glob("unet_mse"))


def test_status_is_1_where_it_is_not_safe_and_2_for_mistakes(workplace, capsys):
    assert main(["check", "baseline_mean"]) == 2
    assert "fitted, not trained" in capsys.readouterr().err
    assert main(["check", "unet_mse", "--data.corp", "3"]) == 2
    wrong_data(workplace)
    assert main(["check", "unet_mse", *SHORT]) == 1
    assert "not safe to train" in capsys.readouterr().out


@pytest.mark.slow
def test_training_refuses_an_error_unless_unchecked(workplace, capsys):
    words = ["train", "unet_mse", "--logger", "none", *SHORT]
    assert main(words) == 0
    facts = Run(RUNS / "unet_mse/latest").read("provenance.json")
    assert {v["level"] for v in facts["checks"]} <= {"ok", "warning"}
    wrong_data(workplace)
    capsys.readouterr()
    assert main(words) == 2
    assert "1 groups in train and val" in capsys.readouterr().err
    assert main([*words, "--unchecked"]) == 0
    facts = Run(RUNS / "unet_mse/latest").read("provenance.json")
    assert [v["name"] for v in facts["checks"] if v["level"] == "error"] == ["splits"]


@pytest.mark.slow
def test_the_short_form_changes_nothing(workplace, monkeypatch):
    """Weights, losses and metrics are those of a training without it."""

    def trained():
        assert main(["train", "unet_mse", "--logger", "none", *SHORT, "--trainer.max_epochs", "2"]) == 0
        run = Run((RUNS / "unet_mse/latest").resolve())
        state = torch.load(run.checkpoints / "last.ckpt", weights_only=True)["state_dict"]
        return state, run.read("metrics.json")["metrics"]

    before = {}
    original = preflight.run

    def spied(*arguments):
        before["called"] = True
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        return original(*arguments)

    monkeypatch.setattr(preflight, "run", spied)
    weights, metrics = trained()
    assert before
    monkeypatch.setattr(preflight, "run", lambda *_: Report("unet_mse", "yeast"))
    plain, plain_metrics = trained()
    assert metrics == plain_metrics
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


def test_a_check_that_fails_itself_stops_nothing(workplace, monkeypatch):
    def broken(ctx):
        raise ZeroDivisionError("three apples")
        yield

    monkeypatch.setattr(preflight, "BRIEF", (broken,))
    assert main(["train", "unet_mse", "--logger", "none", *SHORT]) == 0
    found = Run(RUNS / "unet_mse/latest").read("provenance.json")["checks"]
    assert [v["level"] for v in found] == ["warning"]
    lines = found[0]["advice"].splitlines()
    assert lines[0] == "ZeroDivisionError: three apples"
    assert 'raise ZeroDivisionError("three apples")' in lines[-2]


def test_after_a_network_that_fails_nothing_else_is_said_about_it(workplace):
    assert main(["check", "unet_mse", *SHORT, "--model.init_args.net.init_args.in_channels", "3"]) == 1
    folder = next((workplace / "runs/checks/unet_mse").iterdir())
    verdicts = json.loads((folder / "report.json").read_text())["verdicts"]
    assert [v["name"] for v in verdicts if v["level"] == "error"] == ["network"]
    assert [v["name"] for v in verdicts if v["measured"] == "could not be checked"] == []
    assert {"alignment", "splits"} <= {v["name"] for v in verdicts}


def test_lines_are_aligned_and_short():
    long = "loss rises from 3e-02 on; take about 3e-03 " * 6
    report = Report("e", "d", [Verdict("splits", "12 train"), Verdict("learning rate", "0.1", "warning", long)])
    lines = report.text().splitlines()
    assert max(map(len, lines)) <= 110
    assert lines[0].index("12") == lines[1].index("0.1")
    start = lines[1].index("loss")
    assert all(line[:start].isspace() and not line[start].isspace() for line in lines[2:])
    assert report.safe


def test_range_test_is_read_as_a_person_would():
    rates = [10.0**k for k in range(-6, 2)]
    curve = [1.0, 1.0, 0.95, 0.6, 0.3, 0.25, 0.9, float("inf")]
    falls, best, rises = network.read_range(rates, curve)
    assert (falls, best, rises) == pytest.approx((1e-3, 1e-1, 1.0))
    assert network.read_range(rates, [1.0] * 8) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_alarm_on_a_shipped_experiment(tmp_path, monkeypatch, name, capsys):
    """Small versions of the demo data, with the experiment's own network."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    dataset = "ihc" if name == "unet_ihc" else "yeast"
    if dataset == "yeast":
        simulate_yeast(tmp_path / "data/raw/yeast", n_images=60, size=128)
    assert main(["data", dataset]) == 0
    capsys.readouterr()
    assert main(["check", name, "--trainer.accelerator", "cpu", "--data.batch_size", "4"]) == 0
    text = capsys.readouterr().out
    assert not [line for line in text.splitlines() if line.startswith(("warning", "error"))], text
