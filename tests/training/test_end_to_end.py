"""From raw files of other kinds than image pairs to metrics, by the commands alone."""

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image
from sklearn.metrics import jaccard_score

from project.cli import main
from project.runs.run_folder import Run

TIMM = """{class_path: project.models.classifier.TimmClassifier,
  init_args: {name: test_resnet, in_channels: 3, classes: 3}}"""
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


pytestmark = pytest.mark.usefixtures("empty_workplace")


def tile(rng, colour, side=16):
    """A tile of about one colour, no two alike."""
    return np.clip(np.array(colour) + rng.normal(0, 20, (side, side, 3)), 0, 255).astype(np.uint8)


def configure(name, **content):
    Path(f"configs/data/{name}.yaml").write_text(yaml.safe_dump(content))


def metrics(experiment):
    return Run(Path("runs", experiment, "latest")).read("metrics.json")


def test_folders_by_class():
    rng = np.random.default_rng(0)
    for split, n in (("train", 12), ("val", 4)):
        for name, colour in COLOURS.items():
            for i in range(n):
                path = Path(f"raw/{split}/{name}/{i}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(tile(rng, colour)).save(path)
    configure("tiles", raw="raw", image={"rgb": "{split}/{label}/{id}.png"})
    assert main(["data", "tiles"]) == 0
    assert main(["baselines", "tiles"]) == 0
    found = metrics("baseline_colour")
    assert found["n_samples"] == 12
    assert found["metrics"]["accuracy"] == 1.0
    assert found["details"]["confusion_matrix"]["classes"] == ["blue", "green", "red"]
    assert found["details"]["confusion_matrix"]["true_by_predicted"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert metrics("baseline_majority")["metrics"]["accuracy"] == pytest.approx(1 / 3)
    words = ["--data.dataset", "tiles", "--data.batch_size", "4", "--logger", "none", "--trainer.max_epochs", "1"]
    assert main(["train", "resnet_ce", *words, "--data.balanced", "true", "--model.init_args.net", TIMM]) == 0


@pytest.mark.slow
def test_pairs_of_images_reach_a_table_with_nothing_typed(monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for i in range(12):
        image = np.kron(rng.integers(100, 4000, (15, 15)), np.ones((4, 4))).astype(np.uint16)
        target = image // 2 + rng.integers(0, 2000, image.shape)  # not a function of the input alone
        for role, array in (("phase", image), ("gfp", target.astype(np.uint16))):
            path = Path(f"raw/day{i % 4}/{role}/a{i:02d}.tif")
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, array)
    patterns = {"image": {"phase": "{day}/phase/{id}.tif"}, "target": {"gfp": "{day}/gfp/{id}.tif"}, "group": "{day}"}
    configure("mine", raw="raw", **patterns)
    monkeypatch.setattr("project.prerequisites.config_names", lambda folder: ["baseline_mean", "baseline_pixel"])
    short = ["--logger", "none", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    for words in (["data"], ["inspect"], ["baselines"], ["train", "unet_mse", "--dataset"]):
        assert main([*words, "mine", *(short if words[0] == "train" else ())]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["eval", "unet_mse", "--dataset", "mine"]) == 0
    table = capsys.readouterr().out
    assert "unet_mse" in table
    assert "baseline_pixel" in table


def test_several_labels_per_image():
    rng, rows = np.random.default_rng(0), []
    for i in range(48):
        present = rng.random(3) < 0.5
        colour = 40 + 160 * present
        Path("raw").mkdir(exist_ok=True)
        Image.fromarray(tile(rng, colour)).save(f"raw/{i}.png")
        rows.append((i, ";".join(n for n, on in zip(COLOURS, present, strict=True) if on)))
    with Path("raw/t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "kinds"), *rows])
    configure(
        "kinds", raw="raw", image={"rgb": "{id}.png"}, table={"path": "t.csv", "label": "kinds", "separator": ";"}
    )
    assert main(["data", "kinds"]) == 0
    assert main(["baselines", "kinds"]) == 0
    found = metrics("baseline_colour")["metrics"]
    assert found["exact_match"] == found["accuracy"] == 1.0
    assert found["auroc"] == 1.0
    words = ["--data.dataset", "kinds", "--data.batch_size", "4", "--logger", "none", "--trainer.max_epochs", "1"]
    loss = "{class_path: project.losses.CrossEntropy, init_args: {class_weights: balanced}}"
    words += ["--model.init_args.net", TIMM, "--model.init_args.loss", loss]
    assert main(["train", "resnet_ce", *words]) == 0
    assert "exact_match" in metrics("resnet_ce")["metrics"]


STREET = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "Sign", "Fence", "Car", "Pedestrian", "Bicyclist"]


@pytest.mark.parametrize("unlabelled", [255, pytest.param(11, marks=pytest.mark.slow)])
def test_folders_of_splits_with_classes_of_pixels(unlabelled):
    rng = np.random.default_rng(0)
    for split, n in (("train", 6), ("val", 2), ("test", 3)):
        for i in range(n):
            mask = rng.permutation(np.repeat(np.arange(12, dtype=np.uint8), 2)).reshape(4, 6).repeat(8, 0).repeat(8, 1)
            image = np.clip(mask[..., None] * [20, 5, -15] + [0, 60, 200] + rng.normal(0, 9, (*mask.shape, 3)), 0, 255)
            mask[mask == 11] = unlabelled
            for folder, array in ((split, image.astype(np.uint8)), (f"{split}annot", mask)):
                Path("raw", folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(f"raw/{folder}/{split}_{i}.png")
    image, mask = {"rgb": "{split:train|val|test}/{id}.png"}, "{split}annot/{id}.png"
    configure("street", raw="raw", image=image, mask=mask, ignore_index=unlabelled, classes=STREET)
    assert main(["data", "street"]) == 0
    assert main(["train", "baseline_trees_mask", "--data.dataset", "street", "--logger", "none"]) == 0
    assert main(["eval", "baseline_trees_mask", "--split", "test", "--predictions"]) == 0
    run = Path("runs/baseline_trees_mask/latest")
    found = Run(run).read("metrics.test.json")["metrics"]
    predicted, truth = [], []
    for path in sorted((run / "predictions/test").iterdir()):
        mask = np.asarray(Image.open(f"raw/testannot/{path.stem.removeprefix('test_')}.png"))
        predicted.append(tifffile.imread(path)[mask != unlabelled])
        truth.append(mask[mask != unlabelled])
    assert len(truth) == 3  # and no file of objects, which nobody annotated
    predicted, truth = np.concatenate(predicted), np.concatenate(truth)
    assert found["iou_pooled"] == pytest.approx(jaccard_score(truth, predicted, average="macro"))
    assert 0.1 < found["iou_pooled"] < 1
    for name, value in zip(STREET, jaccard_score(truth, predicted, average=None), strict=True):
        assert found[f"iou_pooled/{name}"] == pytest.approx(value)
    assert found["pixel_accuracy"] == pytest.approx((truth == predicted).mean())
    assert not [name for name in found if "object" in name or "count" in name]
