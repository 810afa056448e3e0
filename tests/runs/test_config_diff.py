"""Two configurations in plain words."""

import copy
from dataclasses import replace

import pytest

from project.runs.config_diff import config_key_without_seed, differences, environment, short_difference
from project.runs.records import Provenance

CONFIG = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 12, "logger": None, "default_root_dir": "runs/a/1"},
    "model": {
        "class_path": "project.tasks.translation.TranslationTask",
        "init_args": {
            "net": {"class_path": "project.models.unet.UNet", "init_args": {"width": 16, "depth": 3}},
            "intensity_augmentation": None,
        },
    },
    "data": {"dataset": "yeast", "fold": None, "num_workers": 0, "transforms": [{"class_path": "albumentations.D4"}]},
    "checkpoint": {"dirpath": "runs/a/1/checkpoints"},
    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
}


@pytest.fixture
def other():
    return copy.deepcopy(CONFIG)


def test_differences_name_key_and_values(other):
    other["optimizer"]["init_args"]["lr"] = 0.003
    other["seed_everything"], other["data"]["transforms"] = 1, []
    other["model"]["init_args"]["net"]["init_args"]["width"] = 32
    assert differences(CONFIG, other, ("old", "new")) == [
        "seed_everything: 0 in old, 1 in new",
        "model.init_args.net.init_args.width: 16 in old, 32 in new",
        "data.transforms: [{'class_path': 'albumentations.D4'}] in old, [] in new",
        "optimizer.init_args.lr: 0.001 in old, 0.003 in new",
    ]


def test_seed_and_fold_are_repetitions_of_one_configuration(other):
    other["checkpoint"]["dirpath"], other["data"]["num_workers"] = "elsewhere", 4  # no difference
    assert differences(CONFIG, other) == []
    other["seed_everything"], other["data"]["fold"] = 3, 2
    assert config_key_without_seed(CONFIG) == config_key_without_seed(other)
    assert short_difference(CONFIG, other) == ""
    other["optimizer"]["init_args"]["lr"] = 0.01
    assert config_key_without_seed(CONFIG) != config_key_without_seed(other)
    assert short_difference(CONFIG, other) == "lr 0.01"


def test_code_and_machine():
    one = Provenance(experiment="a", commit="a" * 40, dirty=True, versions={"torch": "2.11"}, hardware={"cores": 2})
    other = replace(one, commit="b" * 40, versions={"torch": "2.12"})
    assert differences(environment(one), environment(other)) == [
        "commit: aaaaaaa with changes in a, bbbbbbb with changes in b",
        "torch: 2.11 in a, 2.12 in b",
    ]
