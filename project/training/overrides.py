"""Overrides of a configuration on the command line: `--key value`, `--key=value`; the last of two wins."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from project.errors import UserError
from project.yaml_files import DEFAULT_CONFIG, Loader, read_yaml

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
    """A configuration after its overrides, as far as YAML alone tells: no defaults of classes.

    `UserError` if a section that is read before the parser checks it has no keys.
    """
    result: dict[str, Any] = copy.deepcopy(content)
    for name, value in options(words):
        if value is not None:
            _merge(result, _content(result, name, value))
    if isinstance(result.get("model"), str):
        result["model"] = {"class_path": result["model"]}
    for name in ("model", "model.init_args", "data", "trainer"):
        if not isinstance(value := _value(result, name), dict | None):
            raise UserError(f"{name}: expected keys with values, got {json.dumps(value)}")
    return result


def parser_arguments(words: list[str]) -> list[str]:
    """Arguments for jsonargparse: files, sections, classes and lists as one `--config`; then what is left.

    So a list replaces the one in a file, and a class that replaces another starts from its own defaults: jsonargparse
    would join them. Single values stay texts, which it reads by the type of their key.
    """
    settings, left = dict[str, Any](), list[tuple[str, str | None]]()
    for name, value in options(words):
        if value is None or name.endswith("+") or not _is_section(settings, name, value):
            left.append((name, value))
            continue
        content = _content(settings, name, value)
        left = [(key, text) for key, text in left if text is None or _value(content, key) is None]  # the last one wins
        _merge(settings, content)
    joined = (name if value is None else f"{name}={value}" for name, value in left)
    return [f"--config={json.dumps(settings, default=str)}", *joined]


def _is_section(settings: dict[str, Any], name: str, value: str) -> bool:
    """Whether an option is about more than a single value."""
    by_name = name == "--config" or name.endswith(".class_path")
    return by_name or isinstance(_parsed(value), dict | list) or isinstance(_value(settings, name), dict)


def _content(settings: dict[str, Any], name: str, value: str) -> dict[str, Any]:
    """One option as a configuration: a file, or a single key. A text where a class is configured names a class."""
    if name == "--config":
        content = _parsed(value) if value.lstrip().startswith("{") else None
        return content if isinstance(content, dict) else read_yaml(Path(value))
    content = _parsed(value)
    if isinstance(content, str) and isinstance(_value(settings, name), dict):
        content = {"class_path": content}
    for part in reversed(_parts(name)):
        content = {part: content}
    return content


def _parts(name: str) -> list[str]:
    return name.removeprefix("--").removesuffix("+").split(".")


def _value(settings: Any, name: str) -> Any:
    """Value of an option in a configuration; None where it is missing."""
    for part in _parts(name):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


def _parsed(value: str) -> Any:
    try:
        return yaml.load(value, Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return value


def _merge(old: dict[str, Any], new: dict[str, Any], is_top: bool = True) -> None:
    """Merge a configuration into another; a class that replaces another keeps no arguments, except the task."""
    for key, value in new.items():
        before: Any = old.get(key)
        if isinstance(value, dict) and isinstance(before, str):
            before = {"class_path": before}
        both = isinstance(before, dict) and isinstance(value, dict)
        if both and ((is_top and key == "model") or _same_class(before.get("class_path"), value.get("class_path"))):
            old[key] = before
            _merge(before, value, is_top=False)
        else:
            old[key] = value


def _same_class(a: str | None, b: str | None) -> bool:
    """Whether two class paths name one class; a name without a package is one of torch's or Lightning's."""
    is_short = bool(a and b) and ("." not in str(a) or "." not in str(b))
    return a is None or b is None or a == b or (is_short and str(a).split(".")[-1] == str(b).split(".")[-1])
