"""`python -m project tune`, through the command: what is refused, and a search of two trials."""

import csv
import json
import sys
from pathlib import Path

import pytest
import yaml

from project.cli import main
from project.runs.run_folder import Run, all_runs

pytest.importorskip("optuna")
TYPED = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--data.crop", "32", "--data.num_workers", "0"]
DATASET = {"shape": (40, 40), "n": {"train": 16, "val": 4, "test": 2}}  # a batch of the experiment
SPACE = """
# For the tests.
space:
  optimizer.init_args.lr: {low: 1.0e-3, high: 1.0e-2, log: true}
  model.init_args.net.init_args.width: [4, 16]
"""


def told(capsys, *words):
    """What a command that must fail with status 2 prints."""
    assert main(["tune", *words]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert not list(Path("runs").glob("unet_mse/*"))
    return captured.err


def space(text, name="tried"):
    Path(f"configs/tune/{name}.yaml").write_text(f"space:\n  {text}\n")
    return ["unet_mse", "--space", name, *TYPED]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("optimizer.init_args.lrr: {low: 1.0e-4, high: 1.0e-2}", 'unknown key "lrr"'),
        ("model.init_args.net.init_args.widht: [8, 16]", 'Did you mean "width"?'),
        (
            "model.init_args.net.class_path: [project.models.unet.UNett, a.B]",
            'Did you mean "project.models.unet.UNet"?',
        ),
        ("optimizer.init_args.lr: {low: 1.0e-2, high: 1.0e-4}", "low (0.01) must be less than high"),
        ("data.crop: [16, 24]", "--data.crop is typed, and data.crop is searched"),
    ],
)
def test_what_is_misspelt_or_impossible_is_told_at_once(workplace, capsys, monkeypatch, text, error):
    monkeypatch.setitem(sys.modules, "project.search.command", None)  # not even imported
    assert error in told(capsys, *space(text))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        # Not to be seen in source files: only building, and running, the experiment tells.
        ("data.batch_size: {low: 0, high: 8}", "data.batch_size: 0 is impossible"),
        ("model.init_args.net.init_args.in_channels: [1, 3]", "in_channels: 3 is impossible: the network fails"),
        (
            "model.init_args.loss: [torch.nn.MSELos, torch.nn.L1Loss]\nmetric: val/mse\nmode: min",
            "MSELos is impossible",
        ),
        ("optimizer.init_args.lr: [1.0e-3, fast]", "lr: fast is impossible"),
        ("model.init_args.loss: [torch.nn.MSELoss, torch.nn.L1Loss]", "cannot be compared"),
        ("data.crops_per_image: [1, 2]\nmetric: val/psnrr\nmode: max", 'no metric "psnrr". Did you mean "psnr"?'),
        ("data.crops_per_image: [1, 2]\nmetric: val/psnr\nmode: min", "write mode: max"),
    ],
)
def test_ends_that_cannot_be_built_are_refused_before_the_first_trial(workplace, capsys, text, error):
    assert error in told(capsys, *space(text))


def test_options(workplace, capsys):
    words = space("data.crops_per_image: [1, 2]")
    assert 'no sampler "tpee". Did you mean "tpe"?' in told(capsys, *words, "--sampler", "tpee")
    assert "TRIALS=none" in told(capsys, *words, "--trials", "none")
    assert "no search space" in told(capsys, "unet_mse", "--space", "nothing")
    assert "name the experiment first" in told(capsys)


@pytest.fixture(scope="module")
def searched(workplace):
    """Two real trials, the first with the experiment's own values."""
    Path("configs/tune/tiny.yaml").write_text(SPACE)
    assert main(["tune", "unet_mse", "--space", "tiny", "--trials", "2", *TYPED]) == 0
    return Path("runs/unet_mse/unet_mse_tune")


@pytest.mark.slow
def test_trials_are_ordinary_runs_that_name_their_study(searched, capsys):
    rows = list(csv.DictReader((searched / "trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["complete", "complete"]
    assert rows[0]["optimizer.init_args.lr"] == "0.003"
    for number, row in enumerate(rows):
        run = Run(searched / f"{number:04d}")
        config, facts = yaml.safe_load(run.config.read_text()), run.read("provenance.json")
        assert config["optimizer"]["init_args"]["lr"] == float(row["optimizer.init_args.lr"])
        assert config["model"]["init_args"]["net"]["init_args"]["width"] == int(
            row["model.init_args.net.init_args.width"]
        )
        assert config["trainer"]["max_epochs"] == 1
        assert facts["status"] == "finished"
        assert facts["study"]["name"] == "unet_mse_tune"
        assert facts["study"]["trial"] == number
        assert run.read("metrics.json")["metrics"]["loss"] == float(row["loss"])
    # They neither become the experiment's latest run nor stand in its tables.
    assert not Path("runs/unet_mse/latest").exists()
    assert all_runs() == []
    assert main(["eval", str(searched / "0001")]) == 0


@pytest.mark.slow
def test_the_winner_is_an_experiment_that_differs_in_its_values_only(searched):
    rows = list(csv.DictReader((searched / "trials.csv").read_text().splitlines()))
    best = min(rows, key=lambda row: float(row["loss"]))
    path = Path("configs/experiments/unet_mse_tuned.yaml")
    assert best["trial"] == "1"
    old, new = (yaml.safe_load(p.read_text()) for p in (Path("configs/experiments/unet_mse.yaml"), path))
    assert new["optimizer"]["init_args"].pop("lr") == float(best["optimizer.init_args.lr"])
    assert new["model"]["init_args"]["net"]["init_args"].pop("width") == int(
        best["model.init_args.net.init_args.width"]
    )
    old["optimizer"]["init_args"].pop("lr")
    old["model"]["init_args"]["net"]["init_args"].pop("width")
    assert new == old
    assert "trial 1" in path.read_text().splitlines()[0]


@pytest.mark.slow
def test_the_same_command_has_nothing_left_and_another_is_another_study(searched, capsys):
    before = (searched / "journal.log").read_text()
    assert main(["tune", "unet_mse", "--space", "tiny", "--trials", "2", *TYPED]) == 0
    out = capsys.readouterr().out
    assert "2 trials of at most 1 epochs (2 are done)" in out
    assert "study unet_mse_tune: 2 complete, 0 given up, 0 failed" in out
    assert main(["tune", "unet_mse", "--space", "tiny", "--trials", "2", *TYPED[2:]]) == 2
    assert "what is typed" in capsys.readouterr().err
    Path("configs/tune/tiny.yaml").write_text(SPACE.replace("16", "32"))
    assert main(["tune", "unet_mse", "--space", "tiny", "--trials", "2", *TYPED]) == 2
    assert "STUDY=unet_mse2" in capsys.readouterr().err
    Path("configs/tune/tiny.yaml").write_text(SPACE)
    assert (searched / "journal.log").read_text() == before
    facts = json.loads((searched / "0000/provenance.json").read_text())
    assert str(searched / "0000") in facts["command"]
