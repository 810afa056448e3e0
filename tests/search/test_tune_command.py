"""`tune` as a command: what is refused before the first trial, and a search of three trials."""

import csv
from pathlib import Path

import pytest
import yaml

from project.cli import main
from project.runs.find_runs import all_runs
from project.runs.run_folder import Run

SHORT = [
    *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--data.crop", "32", "--data.num_workers", "0"),
    "--data.batch_size=4",
]
DATASET = {"shape": (40, 40), "n": {"train": 8, "val": 4, "test": 2}}
SPACE = """
space:
  optimizer.init_args.lr: {low: 1.0e-3, high: 3.0e-2, log: true}
  model.init_args.net.init_args.width: [4, 16]
"""


def refusal(capsys, *words):
    """The message of a command that fails with status 2 and leaves nothing."""
    assert main(["tune", *words]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert not list(Path("runs").glob("unet_mse/*"))
    return captured.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.init_args.lrr: {low: 1.0e-4, high: 1.0e-2}", "lrr"),
        ("optimiser.init_args.lr: {low: 1.0e-4, high: 1.0e-2}", 'Did you mean "optimizer'),
        ("data.batch_size: {low: 0, high: 8}", "data.batch_size 0 is impossible"),
        ("model.init_args.net.init_args.in_channels: [1, 3]", "in_channels 3 is impossible: the settings do not fit"),
        ("optimizer.init_args.lr: [1.0e-3, fast]", "lr fast is impossible"),
        ("model.init_args.loss: [torch.nn.MSELoss, torch.nn.L1Loss]", "cannot be compared by checkpoint.monitor"),
    ],
)
def test_what_no_trial_can_do_is_refused_before_the_first(workplace, capsys, text, message):
    Path("configs/tune/tried.yaml").write_text(f"space:\n  {text}\n")
    words = [*SHORT[:-1], "--data.crops_per_image=2"] if "batch_size" in text else SHORT
    words = [*words, *(["--checkpoint.monitor=val/loss"] if "loss" in text else [])]
    assert message in refusal(capsys, "unet_mse", "--space", "tried", *words)


def test_options_are_checked(workplace, capsys):
    assert "tpee" in refusal(capsys, "unet_mse", "--sampler", "tpee")
    assert "no search space" in refusal(capsys, "unet_mse", "--space", "nothing")
    assert "experiment" in refusal(capsys)


@pytest.fixture(scope="module")
def searched(workplace):
    """Three real trials, the first with the experiment's own values."""
    Path("configs/tune/tiny.yaml").write_text(SPACE)
    assert main(["tune", "unet_mse", "--space", "tiny", "--trials", "3", *SHORT]) == 0
    return Path("runs/unet_mse/unet_mse_tune")


@pytest.mark.slow
def test_trials_are_ordinary_runs_that_name_their_study(searched):
    rows = list(csv.DictReader((searched / "trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["complete"] * 3
    for number, row in enumerate(rows):
        run = Run(searched / f"{number:04d}")
        config, facts = yaml.safe_load(run.config.read_text()), run.read_provenance()
        assert config["optimizer"]["init_args"]["lr"] == float(row["optimizer.init_args.lr"] or 0.003)
        width = config["model"]["init_args"]["net"]["init_args"]["width"]
        assert width == int(row["model.init_args.net.init_args.width"] or 16)
        assert facts.status == "finished"
        assert (facts.study["name"], facts.study["trial"]) == ("unet_mse_tune", number)
        assert run.read_metrics().metrics["mse"] == float(row["value"])
    # They neither become the experiment's latest run nor are in its tables.
    assert not Path("runs/unet_mse/latest").exists()
    assert all_runs() == []
    assert main(["eval", str(searched / "0001")]) == 0


@pytest.mark.slow
def test_the_best_values_are_an_experiment(searched, capsys):
    rows = list(csv.DictReader((searched / "trials.csv").read_text().splitlines()))
    best = min(rows, key=lambda row: float(row["value"]))
    if best is rows[0]:
        assert not Path("configs/experiments/unet_mse_tuned.yaml").exists()
        return
    old, new = (yaml.safe_load(Path(f"configs/experiments/unet_mse{end}.yaml").read_text()) for end in ("", "_tuned"))
    old["optimizer"]["init_args"]["lr"] = float(best["optimizer.init_args.lr"])
    old["model"]["init_args"]["net"]["init_args"]["width"] = int(best["model.init_args.net.init_args.width"])
    assert new == old


@pytest.mark.slow
def test_a_finished_study_trains_nothing_and_other_settings_are_another_study(searched, capsys):
    words = ["tune", "unet_mse", "--space", "tiny", "--trials", "3"]
    before = (searched / "journal.log").read_text()
    assert main([*words, *SHORT]) == 0
    assert "all 3 trials: " in capsys.readouterr().out
    assert main([*words, *SHORT[2:]]) == 2
    assert "--study unet_mse2" in capsys.readouterr().err
    assert main(["tune", "unet_mse", "--trials", "0"]) == 2
    assert "1 or more" in capsys.readouterr().err
    assert (searched / "journal.log").read_text() == before


@pytest.mark.slow
def test_epochs_are_reported_and_a_bad_trial_is_pruned(workplace, monkeypatch):
    """The experiment learns something, the others do not."""
    monkeypatch.setattr("project.search.search.PRUNE_TRIALS", 1)
    Path("configs/tune/worse.yaml").write_text("space:\n  optimizer.init_args.lr: [1.0e-9, 1.0e-8]\n")
    tiny = ["--model.init_args.net.init_args", "{in_channels: 1, out_channels: 1, width: 4, depth: 1}"]
    words = ["--trials", "3", "--sampler", "random", "--trainer.max_epochs", "2", *tiny, *SHORT[2:]]
    assert main(["tune", "unet_mse", "--space", "worse", "--study", "worse", *words]) == 0
    rows = list(csv.DictReader(Path("runs/unet_mse/worse_tune/trials.csv").read_text().splitlines()))
    assert [(row["state"], row["epochs"]) for row in rows] == [("complete", "2"), ("complete", "2"), ("pruned", "1")]
