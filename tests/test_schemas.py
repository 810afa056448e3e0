"""The JSON Schemas accept all shipped files, and mark mistakes in them."""

import copy
import random

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


def sections(content, inside_foreign=False):
    """Dictionaries of keys that the project knows, at any depth."""
    if isinstance(content, dict):
        if not inside_foreign:
            yield content
        foreign = str(content.get("class_path", "project.")).partition(".")[0] not in ("project", "torch", "lightning")
        for key, value in content.items():
            yield from sections(value, foreign and key == "init_args")
    for item in content if isinstance(content, list) else ():
        yield from sections(item)


def mutants(content, rng):
    """Copies of a file with one mistake: a misspelt key, or a value of a wrong type."""
    for kind in ("key", "type"):
        mutant = copy.deepcopy(content)
        section = rng.choice([part for part in sections(mutant) if part])
        key = rng.choice(sorted(section))
        value = section[key]
        if kind == "key":
            section[f"{key}x"] = section.pop(key)
        else:
            section[key] = {"no": "text"} if not isinstance(value, dict) else 1.5
        yield mutant


@pytest.mark.slow
def test_mistakes_are_marked(validators):
    rng = random.Random(0)
    missed, n = [], 0
    for path in EXPERIMENTS * 2 + DATA * 4:
        for mutant in mutants(yaml.safe_load(path.read_text()), rng):
            n += 1
            if not errors(validators, path, mutant):
                missed.append((path.name, mutant))
    assert n >= 60
    assert len(missed) <= 0.05 * n, missed


def test_arguments_of_classes_are_known(validators):
    content = yaml.safe_load((CONFIGS / "experiments/unet_mse.yaml").read_text())
    path = CONFIGS / "experiments/unet_mse.yaml"
    content["model"]["init_args"]["net"]["init_args"]["widht"] = 8
    assert errors(validators, path, content)
    content["model"]["init_args"]["net"] = {"class_path": "mynet.MyNet", "init_args": {"anything": 8}}
    assert errors(validators, path, content) == []
    content["model"]["init_args"]["net"] = "project.models.unet.UNett"
    assert errors(validators, path, content)
