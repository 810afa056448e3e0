"""Every shipped experiment on any data that its task can use, with nothing typed but the name of the dataset."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from shipped_configs import CONFIGS

from project.cli import main
from project.data.dataset_facts import dataset_facts
from project.runs.find_runs import find_run
from project.training.lightning_cli import task_class

EXPERIMENTS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CONFIGS / "experiments").glob("*"))}
# Those that others start from come first.
NAMES = sorted(
    (n for n in EXPERIMENTS if not n.startswith("baseline_")), key=lambda n: "pretrained" in str(EXPERIMENTS[n])
)
ALL = ("image", "target", "mask", "instances")
TWO_SIZES = {"sizes": {"train": [(60, 90)] * 6 + [(75, 64)] * 6, "val": [(40, 52)] * 5}}
DATA: dict[str, dict[str, Any]] = {
    "rgb": {"shape": (64, 72), "dtype": "u1", "low": 20, "high": 200, "target_offset": 10, "channels": 3, "roles": ALL},
    "five_classes": {"shape": (64, 64), "n_classes": 5, "roles": ("image", "mask", "instances")},
    "several_labels": {"shape": (40, 56), "n_labels": 4, "multi_label": True, "roles": ("image",)},
    "seven_classes": {"shape": (28, 28), "n_labels": 7, "roles": ("image",), "n": {"train": 40, "val": 14, "test": 7}},
    "two_values": {"shape": (48, 48), "n_values": 2, "roles": ("image",)},
    "many_channels": {"shape": (40, 40), "channels": 13, "target_channels": 2, "roles": ALL, "n_labels": 2},
    "mixed_sizes": {"roles": ALL, "n_labels": 3, "n_values": 1, **TWO_SIZES},
    "few_large": {"shape": (300, 300), "roles": ALL, "n": {"train": 3, "val": 2, "test": 1}},
}
FAST = [("mixed_sizes", "unet_mse"), ("several_labels", "resnet_ce"), ("many_channels", "unet_depth")]
STEPS = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.accelerator", "cpu")


@pytest.fixture
def prepared(empty_workplace, write_tiny):
    """Writes a dataset; returns its folder."""
    return lambda name: write_tiny(empty_workplace / "data/processed" / name, **DATA[name])


def train(experiment: str, dataset: str) -> None:
    # Made-up data has no answer: checks of the values may find that nothing can be learned from it.
    assert main(["train", experiment, "--dataset", dataset, "--logger", "none", "--unchecked", *STEPS]) == 0
    run = find_run(experiment, dataset=dataset)
    assert run.read("provenance.json")["status"] == "finished"
    assert yaml.safe_load(run.config.read_text())["data"]["crops_per_image"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "experiment"), FAST)
def test_an_experiment_trains_on_other_data(prepared, dataset, experiment):
    prepared(dataset)
    train(experiment, dataset)


@pytest.mark.nightly
@pytest.mark.parametrize("dataset", DATA)
def test_every_experiment_trains_on_data_that_has_its_inputs(prepared, dataset):
    available = {*dataset_facts(prepared(dataset)).available_roles}
    for name in NAMES:
        settings = EXPERIMENTS[name]
        if {*task_class(settings).needed_inputs(settings["model"]["init_args"])} <= available:
            starts = settings["model"]["init_args"].get("pretrained")
            if not starts or Path(starts["file"]).is_dir():
                train(name, dataset)


def test_an_experiment_that_lacks_its_inputs_names_those_that_fit(prepared, capsys):
    prepared("several_labels")
    assert main(["train", "unet_mse", "--dataset", "several_labels"]) == 2
    message = capsys.readouterr().err
    assert "no target" in message
    assert "resnet_ce" in message
    assert "unet_dice" not in message
    assert not Path("runs").exists()


@pytest.mark.slow
def test_runs_on_another_dataset_are_not_confused(prepared, capsys):
    for dataset in ("many_channels", "rgb"):
        prepared(dataset)
        assert main(["train", "baseline_mean", "--dataset", dataset, "--logger", "none"]) == 0
    assert find_run("baseline_mean").read("provenance.json")["dataset"] == "rgb"
    capsys.readouterr()
    assert main(["eval", "baseline_mean", "--dataset", "many_channels"]) == 0
    text = capsys.readouterr().out
    assert "many_channels, translation" in text
    assert "rgb" not in text
    assert main(["eval", "baseline_mean", "--dataset", "five_classes"]) == 2
    assert 'baseline_mean has not been trained on "five_classes" yet' in capsys.readouterr().err
