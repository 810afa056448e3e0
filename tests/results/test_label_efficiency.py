"""From images without labels to a better start: pretraining, and shares of the labels."""

import csv
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
import yaml

from project.cli import main
from project.data.store import SplitReader
from project.results.label_efficiency import Point, format_mean, measure, write_table
from project.runs.run_folder import Run

pytestmark = pytest.mark.slow  # trains runs
DATASET = {"shape": (40, 40), "roles": ("image", "target", "mask", "instances"), "n_labels": 2}
SHORT = [
    *("--logger", "none", "--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--data.num_workers", "0"),
    *("--trainer.limit_train_batches", "2", "--data.crop", "32", "--data.batch_size", "4"),
]
ENCODER = ["--model.init_args.net.init_args.encoder_name", "tu-test_resnet"]


def train(name, *words):
    assert main(["train", name, *SHORT, *words]) == 0
    return Run(Path("runs", name, "latest").resolve())


@pytest.fixture(scope="module")
def filled_in(workplace, write_tiny):
    """A run that learned to fill in images without labels, of a dataset of its own."""
    folder = write_tiny(workplace / "data/processed/pool", **DATASET)
    write_tiny(workplace / "more", shape=(40, 40), roles=("image",), n={"train": 9}, seed=5)
    (workplace / "more/train.h5").rename(folder / "unlabeled.h5")
    return train("unet_masked", *ENCODER, "--data.dataset", "pool")


@pytest.fixture(scope="module")
def few(workplace):
    """A segmentation that was trained on four of twelve images."""
    return train("unet_dice", *ENCODER, "--data.labelled_fraction", "0.25", "--seed_everything", "3")


# Pretraining ----------------------------------------------------------------------------------------------------------


def test_pretraining_reads_images_without_labels_and_is_measured_like_every_task(filled_in):
    content = json.loads((filled_in.folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert content["metrics"].keys() == {"loss", "mse", "r2_pooled"}
    assert content["metrics"]["loss"] == pytest.approx(content["metrics"]["mse"], rel=1e-5)
    rows = list(csv.DictReader((filled_in.folder / "samples/val.csv").read_text().splitlines()))
    assert len(rows) == content["n_samples"] == 5
    assert "9 training and 5 validation images" in (filled_in.folder / "log.txt").read_text()
    facts = filled_in.read("provenance.json")
    assert facts["task"] == "pretraining"
    assert facts["data_hash"]["train"] == SplitReader("data/processed/pool/unlabeled.h5").content_hash
    assert (filled_in.folder / "pictures/val.png").is_file()


def test_what_was_learned_is_the_start_of_a_segmentation(filled_in):
    starts = ["--model.init_args.pretrained.file", "runs/unet_masked/latest"]  # on other data, which is read as named
    run = train("unet_dice_from_masked", *ENCODER, *starts, "--optimizer.init_args.lr", "1e-30")
    ours, theirs = (torch.load(r.checkpoints / "best.ckpt", weights_only=True)["state_dict"] for r in (run, filled_in))
    weights = [name for name in ours if name.startswith(("net.encoder.", "net.decoder.")) and "running" not in name]
    weights = [name for name in weights if "num_batches" not in name]
    assert len(weights) > 50
    assert all(torch.equal(ours[name], theirs[name]) for name in weights)
    assert ours["net.segmentation_head.0.weight"].shape[0] == 2
    assert "loaded" in (run.folder / "log.txt").read_text()
    assert "12 training" in (run.folder / "log.txt").read_text()  # those with labels


# Shares of the labels -------------------------------------------------------------------------------------------------


def test_a_run_with_few_labels_says_so_and_is_evaluated_alike(few):
    assert "4 training and 5 validation images" in (few.folder / "log.txt").read_text()
    assert yaml.safe_load(few.config.read_text())["data"]["labelled_fraction"] == 0.25
    before = few.read("metrics.json")["metrics"]
    assert main(["eval", str(few.folder)]) == 0
    assert few.read("metrics.json")["metrics"] == pytest.approx(before, rel=1e-6)
    assert main(["eval", str(few.folder), "--data.labelled_fraction", "1"]) == 2  # other data than it was trained on


def test_intervals_are_those_of_student():
    # t with 2 degrees of freedom at 97.5 %: 4.303; the standard deviation of 1, 2, 3 is 1.
    assert format_mean([1.0, 2.0, 3.0]) == f"2.000 ± {4.30265 / 3**0.5:.3f}"
    assert format_mean([0.5], "+") == "+0.500"
    assert format_mean([]) == "-"


def test_differences_are_taken_seed_by_seed(tmp_path):
    values = {("plain", 0): 0.1, ("plain", 1): 0.9, ("better", 0): 0.2, ("better", 1): 1.0}
    points = [Point(e, 0.05, seed, 3 + seed, "dice", v) for (e, seed), v in values.items()]
    points.append(Point("better", 0.2, 1, 9, "dice", 0.7))
    text = write_table(points, tmp_path / "table.md")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| 0")]
    assert rows[0][:3] == ["| 0.05", "3 to 4", "2"]
    assert rows[0][-1] == "+0.100 ± 0.000 |"
    assert rows[1] == ["| 0.2", "9", "1", "-", "0.700", "- |"]
    assert (tmp_path / "table.md").read_text() in text


def test_runs_are_measured_once_until_data_or_configuration_change(workplace, few, tmp_path):
    trained = []

    def train(words):
        """A training that only copies a run."""
        trained.append(words)
        run = Run(shutil.copytree(few.folder, tmp_path / "runs/unet_dice" / f"run{len(trained)}"))
        now = datetime.now(UTC).isoformat()
        run.update_provenance(overrides=words[1:], started=now, resumed=[])
        content = json.loads(run.metrics_file("val").read_text())
        content["metrics"]["dice"] = len(trained) / 10
        run.metrics_file("val").write_text(json.dumps(content))
        return run

    def measure_again():
        text = measure(["unet_dice"], [0.25], [0, 1], [], train, root=tmp_path / "runs")
        return len(trained), text.split("|")[-2].split()[0]

    assert measure_again() == measure_again() == (2, "0.150")
    (tmp_path / "runs/unet_dice/run2/metrics.json").unlink()
    assert measure_again() == (3, "0.200")
    experiment = workplace / "configs/experiments/unet_dice.yaml"
    os.utime(experiment)
    assert measure_again() == (5, "0.450")


def test_fractions_trains_what_is_missing_and_prints_the_table(filled_in, capsys, monkeypatch):
    words = ["fractions", "unet_dice", "unet_dice_from_masked", "--fractions=0.25", "--seeds=3"]
    words += [*SHORT, *ENCODER, "--model.init_args.min_size", "3"]
    train("unet_masked", *ENCODER)  # the weights that unet_dice_from_masked starts from, on this data
    assert main(words) == 0
    table = Path("runs/tables/labels_unet_dice_unet_dice_from_masked.md").read_text()
    assert table in capsys.readouterr().out
    assert "| seeds | unet_dice | unet_dice_from_masked | difference |" in table
    value = Run(Path("runs/unet_dice/latest")).read("metrics.json")["metrics"]["dice"]
    assert f"| 0.25 | 4 | 1 | {value:.3f} |" in table
    # Nothing is trained twice.
    monkeypatch.setattr("project.training.train.train", lambda *_, **__: pytest.fail("trained again"))
    assert main(words) == 0
