"""Plans of data of many kinds train for two steps."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from project.cli import main
from project.planning import plan as planning
from project.planning.machine import Machine
from project.planning.plan import plan_dataset

CASES = {
    "pairs": ({}, "translation"),
    "objects": ({"roles": ("image", "mask", "instances"), "shape": (64, 64)}, "segmentation"),
    "tiny": ({"shape": (8, 9)}, "translation"),
    "tiny_labels": ({"shape": (7, 8), "roles": ("image",), "n_labels": 3}, "classification"),
    "three_images": ({"n": {"train": 3, "val": 1, "test": 1}}, "translation"),
    "many_channels": ({"channels": 13, "target_channels": 2}, "translation"),
    "many_classes": ({"roles": ("image",), "n_labels": 40, "n": {"train": 41, "val": 40, "test": 1}}, "classification"),
    "signed_targets": ({"target_dtype": np.float32, "target_offset": -10500}, "translation"),
    "numbers": ({"roles": ("image",), "n_values": 3}, "regression"),
    "images_only": ({"roles": ("image",)}, "pretraining"),
    "sizes": (
        {"sizes": {"train": [(40, 70), (90, 50)] * 6, "val": [(48, 48), (60, 33)]}, "n": {"train": 12, "val": 2}},
        "translation",
    ),
    "mask_only": ({"roles": ("image", "mask"), "shape": (160, 160)}, "segmentation"),
}
FAST = {"pairs", "objects", "tiny_labels"}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow if name in FAST else pytest.mark.nightly) for name in CASES]
)
def test_a_plan_trains(workplace, write_tiny, case, monkeypatch):
    monkeypatch.setattr(planning, "measure_machine", Machine)
    options, task = CASES[case]
    folder = write_tiny(Path("data/processed") / case, **options)
    (path,) = plan_dataset(folder, Path("configs/experiments"), 1, None if task == "translation" else task)
    short = ["--logger=none", "--length.minutes=null", "--length.steps=2", "--trainer.limit_val_batches=1"]
    assert main(["train", path.stem, *short, "--unchecked"]) == 0  # whatever random pixels happen to be like
    assert (Path("runs") / path.stem / "latest/metrics.json").is_file()


@pytest.mark.slow
def test_without_an_experiment_a_dataset_is_planned_trained_and_compared(workplace, write_tiny, monkeypatch, capsys):
    monkeypatch.setattr(planning, "measure_machine", Machine)
    folder = write_tiny(Path("data/processed/kinds"), roles=("image",), labels=True)
    words = ["train", "--dataset", "kinds", "--logger=none", "--length.minutes=null", "--length.steps=2"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert Path("configs/experiments/kinds.yaml").read_text() in printed
    assert "Baselines, which the minutes of a training do not include" in printed
    table = printed[printed.rindex("experiment") :]
    assert all(name in table for name in ("kinds", "baseline_majority"))
    assert all(Path("runs", name, "latest/card.md").is_file() for name in ("kinds", "baseline_majority"))

    shutil.rmtree(folder)
    write_tiny(folder, roles=("image",), labels=True, channels=3)
    assert main(words) == 2
    assert "image 1 channel, now 3 channels" in capsys.readouterr().err
    assert main(["train", "kinds", "--logger=none", "--length.minutes=null", "--length.steps=2", "--unchecked"]) == 0
    assert "warning: configs/experiments/kinds.yaml was planned for other data" in capsys.readouterr().out
