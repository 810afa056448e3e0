"""Options on the command line that override a configuration: `--key value`, `--key=value`; the last of two wins."""

import copy
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from project.errors import UserError
from project.yaml_files import read_yaml


def options(words: list[str]) -> Iterator[tuple[int, str, str | None, int]]:
    """Each option: its position, its name with the dashes, its value (None without), and its number of words.

    Raises:
        UserError: A word is neither an option nor the value of one.
    """
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("--") and word != "-h":
            is_key = re.fullmatch(r"-?[a-z]\w*(\.\w+)*\+?(=.*)?", word, re.DOTALL) and re.search(r"^-|[.=]", word)
            hint = f": write --{word.lstrip('-')}" if is_key else ", and no option is before it"
            raise UserError(f'"{word}" is no option{hint}')
        name, equals, value = word.partition("=")
        following = words[position + 1] if position + 1 < len(words) else None
        if equals:
            yield position, name, value, 1
        elif following is None or following.startswith("--"):
            yield position, name, None, 1
        else:
            yield position, name, following, 2
        position += 1 if equals or following is None or following.startswith("--") else 2


def last(words: list[str], name: str) -> str | None:
    """The last value given to an option."""
    values = [value for _, option, value, _ in options(words) if option == name]
    return values[-1] if values else None


def take(words: list[str], name: str) -> str | None:
    """The last value given to an option, which is removed from the words, wherever it is given."""
    given = [(position, value, n) for position, option, value, n in options(words) if option == name]
    for position, _, n in reversed(given):
        del words[position : position + n]
    return given[-1][1] if given else None


def flag(words: list[str], name: str) -> bool:
    """Whether an option without a value is given; it is removed from the words."""
    given = name in words
    words[:] = [word for word in words if word != name]
    return given


def applied(content: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """A configuration after its overrides, as far as YAML alone tells: no defaults of classes."""
    result: dict[str, Any] = copy.deepcopy(content)
    for _, name, value, _ in options(words):
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
    """Of `--config`: a file, or the content itself."""
    content = _parsed(value) if value.lstrip().startswith("{") else None
    return content if isinstance(content, dict) else read_yaml(Path(value))


# For the parser -------------------------------------------------------------------------------------------------------


def for_parser(words: list[str]) -> tuple[list[str], list[str]]:
    """The words as jsonargparse has to be given them, and a line for each class whose arguments are kept.

    Negative numbers are joined to their option, a list replaces the one in the file, and a class that replaces another
    starts from its own defaults.
    """
    arguments, reports, configs = list[str](), list[str](), dict[int, dict[str, Any]]()
    for _, name, value, _ in options(words):
        if name == "--config" and value is not None:
            content = _config(value)
            _replace(configs, arguments, list(_classes(content, "")), reports)
            configs[len(arguments)] = content
        elif value is not None:
            _replace(configs, arguments, list(_given_class(name.removeprefix("--"), value)), reports)
            # jsonargparse would join two lists item by item, and give a new class what was written for another.
            if value.lstrip().startswith("["):
                arguments.append(f"{name}=[]")
        arguments.append(name if value is None else f"{name}={value}")
    return arguments, reports


def _given_class(key: str, value: str) -> Iterator[tuple[str, str]]:
    """The class that an override names, with its place."""
    if key.endswith(".class_path"):
        yield key.removesuffix(".class_path"), value
        return
    content = _parsed(value)
    if isinstance(content, dict):
        yield from _classes(content, key)
    elif isinstance(content, str):
        yield key, content  # a class without arguments, if the file has a class at that place


def _classes(content: dict[str, Any], place: str) -> Iterator[tuple[str, str]]:
    if isinstance(content.get("class_path"), str):
        yield place, content["class_path"]
    for key, inner in content.items():
        if isinstance(inner, dict):
            yield from _classes(inner, f"{place}.{key}".lstrip("."))


def _replace(
    configs: dict[int, dict[str, Any]], arguments: list[str], classes: list[tuple[str, str]], reports: list[str]
) -> None:
    """Take from earlier files the arguments of classes that are replaced; those of the task itself are reported."""
    for position, content in configs.items():
        for place, new in classes:
            *parents, key = place.split(".")
            section: Any = content
            for parent in parents:
                section = section.get(parent) if isinstance(section, dict) else None
            node = section.get(key) if isinstance(section, dict) else None
            old = node.get("class_path") if isinstance(node, dict) else None
            if not isinstance(node, dict) or not isinstance(old, str) or _same_class(old, new):
                continue
            if place == "model":
                reports.append(f"model: {new} replaces {old}, and keeps {', '.join(node.get('init_args') or ())}")
            else:
                section[key] = {"class_path": new}
                arguments[position] = f"--config={json.dumps(content)}"


def _same_class(a: str, b: str) -> bool:
    short = "." not in a or "." not in b
    if a == b or (short and a.rpartition(".")[2] == b.rpartition(".")[2]):
        return True
    try:
        first, second = (getattr(importlib.import_module(p.rpartition(".")[0]), p.rpartition(".")[2]) for p in (a, b))
    except (ImportError, AttributeError, ValueError):
        return False
    return first is second
