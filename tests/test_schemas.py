"""The JSON Schemas accept all shipped files, and mark mistakes in them."""

import copy

import jsonschema
import pytest
import yaml
from shipped_configs import CONFIGS

from project.schemas import data_schema, experiment_schema

EXPERIMENTS = [
    CONFIGS / "default.yaml",
    *sorted(CONFIGS.glob("experiments/*.yaml")),
    *sorted(CONFIGS.glob("presets/*")),
]
DATA = sorted(CONFIGS.glob("data/*.yaml"))


@pytest.fixture(scope="module")
def validators():
    """Folder of `configs` -> validator."""
    experiment = jsonschema.Draft202012Validator(experiment_schema())
    data = jsonschema.Draft202012Validator(data_schema())
    return {"data": data} | dict.fromkeys(("configs", "experiments", "presets"), experiment)


def errors(validators, path, content):
    return [f"{path.name}: {error.json_path}" for error in validators[path.parent.name].iter_errors(content)]


@pytest.mark.slow
def test_all_shipped_files_are_valid(validators):
    for path in (*EXPERIMENTS, *DATA):
        assert errors(validators, path, yaml.safe_load(path.read_text())) == []


def mutants(content, part=None):
    """Copies with one key misspelt, and with one value of another type, for each key; names that are free included."""
    for key, value in (part := content if part is None else part).items():
        if isinstance(value, dict):
            yield from mutants(content, value)
        for mutant in ({f"{key[:-1]}_{key[-1]}": value}, {key: 7 if isinstance(value, dict) else {"no": "value"}}):
            memo = {id(part): {name: old for name, old in part.items() if name != key} | mutant}
            yield copy.deepcopy(content, memo)


@pytest.mark.slow
def test_nearly_all_mutants_of_shipped_files_are_rejected(validators):
    files = [*CONFIGS.glob("experiments/*.yaml"), *CONFIGS.glob("data/*.yaml")]
    rejected = [
        not validators[path.parent.name].is_valid(mutant)
        for path in files
        for mutant in mutants(yaml.safe_load(path.read_text()))
    ]
    assert len(rejected) > 60
    assert sum(rejected) > 0.95 * len(rejected)


def test_arguments_of_classes_are_known(validators):
    content = yaml.safe_load((CONFIGS / "experiments/unet_mse.yaml").read_text())
    path = CONFIGS / "experiments/unet_mse.yaml"
    content["model"]["init_args"]["net"]["init_args"]["widht"] = 8
    assert errors(validators, path, content)
    content["model"]["init_args"]["net"] = {"class_path": "mynet.MyNet", "init_args": {"anything": 8}}
    assert errors(validators, path, content) == []
    content["model"]["init_args"]["net"] = "project.models.unet.UNett"
    assert errors(validators, path, content)
