"""JSON Schemas of experiment and data files, with which editors complete keys and mark mistakes.

They follow from the parsers: that of the experiments (jsonargparse) and the dataclasses of the data config (pydantic).
Classes of the project, and those that the shipped experiments name, are described with their arguments; of other
classes any argument is accepted.
"""

import importlib
import inspect
import json
import logging
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse._completions_jsonschema import ParserJsonschema, anyof_schema
from pydantic import TypeAdapter

import project
from project.data.config import DatasetConfig
from project.files import write_json
from project.runs.run_folder import Run
from project.training.lightning_cli import ExperimentCLI
from project.training.loggers import quiet_lightning
from project.yaml_files import DEFAULT_CONFIG, named_object, read_yaml

FOLDER = Path("configs/schemas")
# A complete experiment, whose parser knows all keys.
MINIMAL = {"class_path": "project.tasks.classification.ClassificationTask", "init_args": {"net": "torch.nn.Identity"}}


def write_schemas() -> list[Path]:
    """Write experiment.json and data.json into `FOLDER`."""
    schemas = {FOLDER / "experiment.json": experiment_schema(), FOLDER / "data.json": data_schema()}
    for path, schema in schemas.items():
        write_json(path, schema)
    return list(schemas)


def data_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of `configs/data/*.yaml`."""
    schema = TypeAdapter(DatasetConfig).json_schema()
    for part in (schema, *schema["$defs"].values()):
        part.setdefault("properties", {})["$schema"] = {"type": "string"}
    return schema


def experiment_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of `configs/experiments/*.yaml`; an experiment may leave out any key."""
    with quiet_lightning(logging.ERROR):
        arguments = [f"--model={json.dumps(MINIMAL)}", "--data.dataset=none"]
        parser = ExperimentCLI(arguments, Run(Path("none/none")), build=False).parser
    return _without_required(_KnownClasses().generate(parser))


class _KnownClasses(ParserJsonschema):
    """Describes `known_classes` instead of all that happen to be imported."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = known_classes()
        self.defaults = {*_class_paths(read_yaml(DEFAULT_CONFIG))}  # an experiment may leave out their names

    def subclass_def(self, class_type: type, action: Any) -> dict[str, Any]:
        paths = [path for path, known in self.classes.items() if issubclass(known, class_type)]
        foreign = {"type": "string", "not": {"anyOf": [{"enum": paths}, {"pattern": r"^project\."}]}}
        other = self.unknown_class_path_schema()
        other["properties"]["class_path"] = foreign
        described = [self.class_path_schema(path, action) for path in paths]
        for path, known in zip(paths, described, strict=True):
            if path in self.defaults:
                del known["required"]  # `optimizer: {init_args: {lr: 1.0e-3}}`
        return anyof_schema([{"anyOf": [{"enum": paths}, foreign]}, *described, other])


def known_classes() -> dict[str, type]:
    """Class path -> class: those of the project, and those that files in `configs` name."""
    classes: dict[str, type] = {}
    for module in pkgutil.walk_packages(project.__path__, "project."):
        if not module.name.endswith("__main__"):
            members = vars(importlib.import_module(module.name)).items()
            classes |= {f"{module.name}.{name}": value for name, value in members if _is_own(value, module.name)}
    named = {path for file in Path("configs").rglob("*.yaml") for path in _class_paths(read_yaml(file))}
    for path in named - classes.keys():
        value = named_object(path)
        if inspect.isclass(value):
            classes[path] = value
    return dict(sorted(classes.items()))


def _is_own(value: Any, module: str) -> bool:
    public = inspect.isclass(value) and not inspect.isabstract(value) and not value.__name__.startswith("_")
    return public and value.__module__ == module


def _class_paths(content: Any) -> Iterator[str]:
    """Values of `class_path` at any depth."""
    if isinstance(content, dict):
        if isinstance(path := content.get("class_path"), str):
            yield path
        content = list(content.values())
    for item in content if isinstance(content, list) else ():
        yield from _class_paths(item)


def _without_required(schema: Any) -> Any:
    """The schema without required keys: defaults, data and the command line give what a file leaves out."""
    if isinstance(schema, dict):
        return {
            key: _without_required(value)
            for key, value in schema.items()
            if key != "required" or value == ["class_path"]
        }
    return [_without_required(item) for item in schema] if isinstance(schema, list) else schema
