"""Overrides of a configuration on the command line: `--key value`, `--key=value`; the last of two wins."""

import copy
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from project.errors import UserError
from project.yaml_files import DEFAULT_CONFIG, read_yaml

DEMO_PRESET = Path("configs/presets/demo.yaml")


def options(words: list[str]) -> Iterator[tuple[str, str | None]]:
    """Name (with the dashes) and value, or None, of each option; `UserError` for a word that is neither."""
    position = 0
    while position < len(words):
        name, equals, value = words[position].partition("=")
        if not name.startswith("--") and name != "-h":
            is_key = re.fullmatch(r"-?[a-z]\w*(\.\w+)*\+?", name) and (equals or re.search(r"^-|[.]", name))
            hint = f": write --{words[position].lstrip('-')}" if is_key else ", and no option is before it"
            raise UserError(f'"{words[position]}" is not an option{hint}')
        position += 1
        following = words[position] if position < len(words) else "--"
        if equals:
            yield name, value
        elif following.startswith("--"):
            yield name, None
        else:
            yield name, following
            position += 1


def last_value(words: list[str], name: str) -> str | None:
    """The last value given to an option."""
    return next((value for option, value in reversed([*options(words)]) if option == name), None)


def is_demo(dataset: Any) -> bool:
    """Whether a dataset is simulated: its config has the key `generate`."""
    path = Path("configs/data", f"{dataset}.yaml")
    return path.is_file() and "generate" in read_yaml(path)


def shared_configs(content: dict[str, Any], words: list[str]) -> list[str]:
    """`--config` of what comes before an experiment: default.yaml and, on demo data, the preset that is shorter."""
    dataset = (apply_overrides(content, words).get("data") or {}).get("dataset")
    files = [DEFAULT_CONFIG, *([DEMO_PRESET] if dataset and is_demo(dataset) else [])]
    return [f"--config={path}" for path in files if path.is_file()]


def apply_overrides(content: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """A configuration after its overrides, as far as YAML alone tells: no defaults of classes."""
    result: dict[str, Any] = copy.deepcopy(content)
    for name, value in options(words):
        if value is None:
            continue
        if name == "--config":
            _merge(result, _config(value))
            continue
        *parents, key = name.removeprefix("--").removesuffix("+").split(".")
        section = result
        for parent in parents:
            inner = section.get(parent)
            section[parent] = inner if isinstance(inner, dict) else {"class_path": inner} if inner else {}
            section = section[parent]
        _merge(section, {key: _parsed(value)})
    return result


def _merge(old: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            _merge(old[key], value)
        else:
            old[key] = value


def _parsed(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _config(value: str) -> dict[str, Any]:
    """The content of `--config`: a file, or the content itself."""
    content = _parsed(value) if value.lstrip().startswith("{") else None
    return content if isinstance(content, dict) else read_yaml(Path(value))


# For the parser -------------------------------------------------------------------------------------------------------


def parser_arguments(words: list[str]) -> tuple[list[str], list[str]]:
    """Arguments for jsonargparse, and a line for each class whose arguments are kept.

    Negative numbers are joined to their option, a list replaces the one in the file, and a class that replaces another
    starts from its own defaults.
    """
    arguments, notes, configs = list[str](), list[str](), dict[int, dict[str, Any]]()
    for name, value in options(words):
        if name == "--config" and value is not None:
            content = _config(value)
            _replace_classes(configs, arguments, list(_classes(content, "")), notes)
            configs[len(arguments)] = content
        elif value is not None:
            _replace_classes(configs, arguments, list(_given_classes(name.removeprefix("--"), value)), notes)
            # jsonargparse would join two lists item by item, and give a new class what was written for another.
            if value.lstrip().startswith("["):
                arguments.append(f"{name}=[]")
        arguments.append(name if value is None else f"{name}={value}")
    return arguments, notes


def _given_classes(key: str, value: str) -> Iterator[tuple[str, str]]:
    """Key and class path of the classes that an override names."""
    content = _parsed(value)
    if key.endswith(".class_path"):
        yield key.removesuffix(".class_path"), value
    elif isinstance(content, dict):
        yield from _classes(content, key)
    elif isinstance(content, str):
        yield key, content  # a class without arguments, if the file has a class at that key


def _classes(content: dict[str, Any], key: str) -> Iterator[tuple[str, str]]:
    if isinstance(content.get("class_path"), str):
        yield key, content["class_path"]
    for name, inner in content.items():
        if isinstance(inner, dict):
            yield from _classes(inner, f"{key}.{name}".lstrip("."))


def _replace_classes(
    configs: dict[int, dict[str, Any]], arguments: list[str], classes: list[tuple[str, str]], notes: list[str]
) -> None:
    """Take from earlier files the arguments of classes that are replaced; those of the task itself are noted."""
    for key, new in classes:
        old = None  # a later file may have arguments for the class of an earlier one
        for position, content in configs.items():
            section: Any = None
            node: Any = content
            for name in key.split("."):
                section, node = node, node.get(name) if isinstance(node, dict) else None
            if not isinstance(node, dict):
                continue
            old = node.get("class_path", old)
            if not isinstance(old, str) or _same_class(old, new):
                continue
            if key == "model":
                notes.append(f"model: {new} replaces {old}, and keeps {', '.join(node.get('init_args') or ())}")
            else:
                section[name] = {"class_path": new}
                arguments[position] = f"--config={json.dumps(content)}"


def _same_class(a: str, b: str) -> bool:
    short = "." not in a or "." not in b
    if a == b or (short and a.rpartition(".")[2] == b.rpartition(".")[2]):
        return True
    try:
        first, second = (getattr(importlib.import_module(p.rpartition(".")[0]), p.rpartition(".")[2]) for p in (a, b))
    except Exception:  # a module of the user may raise anything; the parser reports it
        return False
    return first is second
