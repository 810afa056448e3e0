"""Cross-validation by the commands alone, from raw files to the table over the folds."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from project.cli import main
from project.data.store import SplitReader
from project.runs.find_runs import runs_of
from project.runs.run_folder import Run

NONE = ("--logger", "none")


@pytest.fixture(scope="module", autouse=True)
def patients(module_workplace):
    """A prepared dataset: 20 patients with two images each, two classes, four folds."""
    rng = np.random.default_rng(0)
    for i in range(40):
        kind = "bright" if i // 2 % 2 else "dark"
        path = Path(f"raw/{kind}/{i // 2:02d}_{i % 2}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 100, (16, 16, 3), np.uint8) + np.uint8(100 * (kind == "bright"))).save(path)
    split = {"folds": 4, "stratify": True, "fractions": {"test": 0.2}}
    content = {"raw": "raw", "image": {"rgb": "{label}/{patient}_{id}.png"}, "group": "{patient}", "split": split}
    Path("configs/data/patients.yaml").write_text(yaml.safe_dump(content))
    assert main(["data", "patients"]) == 0


def train(fold, *words):
    return main(["train", "baseline_colour", "--data.dataset", "patients", f"--data.fold={fold}", *NONE, *words])


def test_prepared_folds():
    folder = Path("data/processed/patients")
    assert not (folder / "val.h5").exists()
    reader, test = SplitReader(folder / "train.h5"), SplitReader(folder / "test.h5")
    assert len(test) == 8
    assert not set(reader.groups) & set(test.groups)
    assert np.bincount(reader.folds).tolist() == [8, 8, 8, 8]
    for fold in range(4):
        assert np.bincount(reader.labels[reader.folds == fold]).tolist() == [4, 4]
        part = reader.fold_subset(fold, training=True)
        assert part.attributes["statistics"]["image"][0]["n"] == 24 * 16 * 16


def test_each_fold_is_trained_evaluated_and_joined_in_a_table(capsys):
    for fold in range(4):
        assert train(fold) == 0
    runs = runs_of("baseline_colour")
    metrics = [run.read("metrics.json") for run in runs]
    assert [content["run"]["fold"] for content in metrics] == [0, 1, 2, 3]
    assert len({content["run"]["data_hash"] for content in metrics}) == 4
    whole = SplitReader("data/processed/patients/train.h5")
    for fold, run in enumerate(runs):
        with (run.folder / "samples/val.csv").open() as file:
            ids = [row["id"] for row in csv.DictReader(file)]
        assert sorted(ids) == sorted(id_ for id_, of in zip(whole.ids, whole.folds, strict=True) if of == fold)
        assert yaml.safe_load(run.config.read_text())["data"]["fold"] == fold
    # The run knows its fold.
    (runs[2].folder / "metrics.json").unlink()
    assert main(["eval", str(runs[2].folder)]) == 0
    again = runs[2].read("metrics.json")
    assert (again["run"]["fold"], again["run"]["data_hash"]) == (2, metrics[2]["run"]["data_hash"])
    assert again["metrics"] == metrics[2]["metrics"]
    assert "fold 2" in capsys.readouterr().out
    row = next(csv.DictReader(Path("runs/tables/patients_classification_val_folds.csv").read_text().splitlines()))
    assert row["folds"] == "0 1 2 3"
    assert (row["accuracy"], row["accuracy_sd"]) == ("1", "0")


def test_the_test_split_is_one_for_all_folds():
    assert train(1) == 0
    assert main(["eval", "baseline_colour", "--split", "test"]) == 0
    assert runs_of("baseline_colour")[-1].read("metrics.test.json")["n_samples"] == 8


def test_a_run_is_not_evaluated_on_images_it_was_trained_on(capsys):
    assert train(1) == 0
    assert main(["eval", "baseline_colour", "--data.fold", "0"]) == 2
    assert "the images of fold 0 are not new to it" in capsys.readouterr().err


def test_baselines_of_a_fold(capsys):
    assert main(["baselines", "patients"]) == 2
    assert "into 4 folds; choose one" in capsys.readouterr().err
    assert main(["baselines", "patients", "--fold", "3"]) == 0
    assert Run(Path("runs/baseline_majority/latest")).read("metrics.json")["run"]["fold"] == 3
    for words in (["--fold", "4"], ["--data.fold", "4"], ["--fold=x"]):
        assert main(["baselines", "patients", *words]) == 2
        assert "fold" in capsys.readouterr().err


def test_training_needs_a_fold(capsys):
    assert main(["train", "baseline_colour", "--data.dataset", "patients", *NONE]) == 2
    assert "make train FOLD=0" in capsys.readouterr().err
    assert train(7) == 2
    assert "0 to 3" in capsys.readouterr().err


def test_weights_that_have_seen_the_fold_are_refused(capsys):
    timm = {"name": "test_resnet", "in_channels": 3, "classes": 2}
    net = json.dumps({"class_path": "project.models.classifier.TimmClassifier", "init_args": timm})
    words = ["train", "resnet_ce", "--data.dataset", "patients", "--data.batch_size", "4", "--trainer.max_epochs", "1"]
    words += ["--model.init_args.net", net, *NONE]
    assert main([*words, "--data.fold", "0"]) == 0
    first = runs_of("resnet_ce")[-1].folder
    for file in (first, first / "checkpoints/best.ckpt", Path("runs/resnet_ce/latest")):
        starts = ["--model.init_args.pretrained.file", str(file)]
        assert main([*words, "--data.fold", "1", *starts]) == 2
        assert "has seen the validation images of fold 1" in capsys.readouterr().err
    assert main([*words, "--data.fold", "0", "--model.init_args.pretrained.file", str(first)]) == 0


def test_what_an_experiment_starts_from_is_trained_on_the_same_fold(monkeypatch):
    asked = []
    monkeypatch.setattr("project.launch.train_in_subprocess", asked.append)
    monkeypatch.setattr("project.runs.find_runs.runs_of", lambda experiment: [])
    assert main(["train", "resnet_finetune", "--data.dataset", "patients", "--data.fold", "2", *NONE]) == 2
    assert asked == [["unet_dice", *NONE, "--data.dataset=patients", "--data.fold=2"]]
