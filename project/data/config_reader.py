"""Data config from a YAML file: keys and types are checked, and text in quotes stays text."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from project.data.config import ArrayConfig, DatasetConfig, PolygonConfig, SizesConfig, SplitConfig, TableConfig
from project.errors import UserError, did_you_mean
from project.yaml_files import BOOLEANS

SECTIONS = {"": DatasetConfig, "split": SplitConfig, "table": TableConfig, "polygons": PolygonConfig}
SECTIONS |= {"sizes": SizesConfig, "arrays": ArrayConfig}
# Errors of pydantic -> what was expected.
NAMES = {"string_type": "text", "int_type": "an integer", "float_type": "a number", "bool_type": "true or false"}
NAMES |= {"int_parsing": "an integer", "list_type": "a list"} | dict.fromkeys(
    ("dict_type", "dataclass_type"), "keys with values"
)


def build_config(content: Mapping[Any, Any]) -> DatasetConfig:
    """Build the data config from the content of a YAML file."""
    try:
        # By way of JSON: numbers may be keys there, such as the names of channels, and else no type becomes another.
        config = TypeAdapter(DatasetConfig).validate_json(json.dumps(dict(content)), strict=True)
    except ValidationError as error:
        problems: dict[str, list[Any]] = {}
        for problem in error.errors():
            problems.setdefault(_key(problem["loc"], content), []).append(problem)
        for key in [key for key in problems if any(other.startswith(f"{key}.") for other in problems)]:
            problems[key] = [problem for problem in problems[key] if problem["type"] not in {*NAMES, "literal_error"}]
        raise UserError("\n".join(_describe(key, of_key) for key, of_key in problems.items() if of_key)) from None
    config.source = content.get("source")  # with its own keys and types
    return config


def _items(content: Any) -> Iterable[tuple[Any, Any]]:
    return content.items() if isinstance(content, dict) else enumerate(content if isinstance(content, list) else ())


def _key(location: tuple[Any, ...], content: Any) -> str:
    """The dotted key, without the names of types that it was compared with."""
    parts = []
    for part in location:
        if str(part) in (below := {str(key): value for key, value in _items(content)}):
            content = below[str(part)]
            parts.append(str(part))
    return ".".join(parts)


def _describe(key: str, problems: list[Any]) -> str:
    """What is wrong with the value of a key; of a union, there is a problem for each of its types."""
    kind, name, value = problems[0]["type"], str(problems[0]["loc"][-1]), problems[0]["input"]
    if kind == "unexpected_keyword_argument":
        section = SECTIONS[key.rpartition(".")[0].partition(".")[0]]
        return f'unknown key "{key}".{did_you_mean(name, [field.name for field in fields(section)])}'
    if kind == "missing":
        return f'{key}{": " if key else ""}the key "{name}" is missing'
    kinds = dict.fromkeys(NAMES.get(p["type"]) or p["msg"].removeprefix("Input should be ") for p in problems)
    hint = ""
    if isinstance(value, bool):
        hint = f'; {BOOLEANS}: quote a text, as "no"'
    elif "text" in kinds:
        hint = "; put it in quotes" if isinstance(value, int | float) else ""
    elif kind == "list_type" and isinstance(value, str):
        hint = f"; write a list: [{value}]"
    elif isinstance(value, str) and (options := re.findall("'(.*?)'", " ".join(kinds))):
        hint = f".{did_you_mean(value, options)}"
    elif kind in ("int_type", "float_type", "bool_type") and re.fullmatch(r"[-+.\d]+|yes|no|true|false", str(value)):
        hint = "; leave out the quotes" if isinstance(value, str) else ""
    return f"{key}: expected {' or '.join(kinds)}, got {json.dumps(value, ensure_ascii=False)}{hint}"
