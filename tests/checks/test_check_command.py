"""`make check` as a command, and the quick checks at the start of a training."""

import json
import shutil
from pathlib import Path

import h5py
import pytest
from shipped_configs import CONFIGS

from project.checks import run as checks
from project.checks import thresholds
from project.checks.report import INDENT, Finding, Report
from project.cli import main
from project.demo import simulate_yeast
from project.runs.run_folder import RUNS, Run

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(p.stem for p in (CONFIGS / "experiments").glob("*.yaml") if not p.stem.startswith("baseline"))
SHORT = [
    *("--model.init_args.net.init_args", "{in_channels: 1, out_channels: 1, width: 4, depth: 1}"),
    *("--data.crop", "32", "--data.batch_size", "4", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"),
]
TRAIN = ["train", "unet_mse", "--logger", "none", *SHORT]


@pytest.fixture
def workplace(tmp_path, monkeypatch, write_tiny):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    write_tiny(
        tmp_path / "data/processed/yeast", shape=(64, 64), roles=("image", "target", "mask"), n_labels=3, n_values=1
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROJECT_RUN_FOLDER", raising=False)
    monkeypatch.setattr(thresholds, "SECONDS", {"rate": 1.0, "fit": 2.0})
    return tmp_path


def share_a_group(folder: Path) -> None:
    """Let training and validation share a group."""
    path = folder / "data/processed/yeast/val.h5"
    copied = shutil.copy(path, path.with_suffix(".copy"))  # readers may still hold the file
    with h5py.File(copied, "r+") as file:
        file["group"][0] = "train03"
    Path(copied).replace(path)


def checks_of_latest():
    return Run(RUNS / "unet_mse/latest").read("provenance.json").get("checks")


@pytest.mark.slow
def test_status_is_0_where_it_is_safe_and_1_where_not(workplace, capsys):
    assert main(["check", "unet_mse", *SHORT]) == 0
    text = capsys.readouterr().out
    folder = next((workplace / "runs/checks/unet_mse").iterdir())
    report = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert report["safe"]
    for finding in report["findings"]:
        assert f"{finding['level']:{INDENT}}{finding['name']}" in text
    assert (folder / "inputs.png").stat().st_size > 10_000
    assert not list((workplace / "runs").glob("unet_mse"))
    share_a_group(workplace)
    too_deep = ["--model.init_args.net.init_args.depth", "6", "--model.init_args.size_divisor", "1"]
    assert main(["check", "unet_mse", *SHORT, *too_deep]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("error")] == ["splits", "network"]


def test_status_is_2_for_mistakes_in_the_configuration(workplace, capsys):
    assert main(["check", "baseline_mean"]) == 2
    assert "fitted, not trained" in capsys.readouterr().err
    assert main(["check", "unet_mse", "--data.corp", "3"]) == 2


@pytest.mark.slow
def test_training_refuses_an_error_unless_unchecked(workplace, capsys):
    assert main(TRAIN) == 0
    assert {finding["level"] for finding in checks_of_latest()} <= {"ok", "note", "warning"}
    share_a_group(workplace)
    capsys.readouterr()
    assert main(TRAIN) == 2
    assert "1 groups in train and val" in capsys.readouterr().err
    assert main([*TRAIN, "--unchecked"]) == 0
    assert [finding["name"] for finding in checks_of_latest() if finding["level"] == "error"] == ["splits"]


def test_a_check_that_fails_itself_stops_nothing(workplace, monkeypatch):
    def broken(ctx):
        raise ZeroDivisionError("three apples")
        yield

    monkeypatch.setattr(checks, "CHECKS", (checks.Check("apples", broken),))
    assert main(TRAIN) == 0
    (finding,) = checks_of_latest()
    assert finding["level"] == "not judged"
    lines = finding["advice"].splitlines()
    assert lines[0] == "ZeroDivisionError: three apples"
    assert 'raise ZeroDivisionError("three apples")' in lines[-2]


def test_lines_are_short_and_a_traceback_keeps_its_lines():
    advice = "loss rises from 3e-02 on; take about 3e-03 " * 6 + "\nTraceback\n  File x, line 3\n    call()"
    report = Report([Finding("ok", "12 train", "", "splits"), Finding("warning", "0.1", advice, "learning rate")])
    lines = report.text().splitlines()
    assert max(map(len, lines)) <= 110
    assert lines[0].index("12") == lines[1].index("0.1")
    assert lines[-1].endswith("    call()")
    assert report.safe


@pytest.mark.nightly
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_alarm_on_a_shipped_experiment(tmp_path, monkeypatch, name, capsys):
    """Small versions of the demo data, with the experiment's own network."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    dataset = "ihc" if name == "unet_ihc" else "yeast"
    if dataset == "yeast":
        simulate_yeast(tmp_path / "data/raw/yeast", n_images=60, size=128)
    assert main(["data", dataset]) == 0
    capsys.readouterr()
    assert main(["check", name, "--trainer.accelerator", "cpu", "--data.batch_size", "4"]) == 0
    text = capsys.readouterr().out
    assert not [line for line in text.splitlines() if line.startswith(("warning", "error"))], text
