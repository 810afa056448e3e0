"""From images without labels to a better start: pretraining, and shares of the labels."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml

from project.cli import main
from project.data.store import SplitReader
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


def test_shares_of_the_labels_are_compared(few, capsys):
    train("unet_dice", *ENCODER)
    assert main(["compare", "unet_dice"]) == 0
    rows = csv.DictReader(Path("runs/tables/yeast_segmentation_val.csv").read_text().splitlines())
    assert "unet_dice (labelled_fraction 0.25)" in [row["experiment"] for row in rows]
