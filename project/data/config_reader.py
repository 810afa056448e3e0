"""Data config from a YAML file: keys and types are checked, and text in quotes stays text."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import date
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from project.data.config import DatasetConfig
from project.errors import UserError, did_you_mean

NAMES = {str: "text", int: "an integer", float: "a number", bool: "true or false", list: "a list"}


def build_config(content: Mapping[Any, Any]) -> DatasetConfig:
    """Build the data config from the content of a YAML file."""
    config: DatasetConfig = _build_section(DatasetConfig, content, "")
    return config


def _build_section(section: type, content: Mapping[Any, Any], key: str) -> Any:
    """An instance of a dataclass; `key` is the dotted key of the section."""
    known = {field.name: field for field in fields(section)}
    if unknown := [name for name in content if name not in known]:
        raise UserError(f'unknown key "{_join(key, unknown[0])}".{did_you_mean(str(unknown[0]), known)}')
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in content]:
        raise UserError(f'{key}{": " if key else ""}the key "{missing[0]}" is missing')
    types = get_type_hints(section)
    return section(**{name: _convert(value, types[name], _join(key, name)) for name, value in content.items()})


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _convert(value: Any, annotation: Any, key: str) -> Any:
    """The value as its annotated type; of a union, the first type that fits."""
    types = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for type_ in types:
        origin, arguments = get_origin(type_), get_args(type_)
        if origin is dict and isinstance(value, dict):
            names = [str(name) if arguments[0] is str and type(name) is int else name for name in value]  # channel 0
            keys = [_convert(name, arguments[0], f"{key}: key {name}") for name in names]
            items = [_convert(item, arguments[1], _join(key, name)) for name, item in value.items()]
            return dict(zip(keys, items, strict=True))
        if origin is list and isinstance(value, list):
            return [_convert(item, arguments[0], key) for item in value]
        if is_dataclass(type_) and isinstance(value, dict):
            return _build_section(type_, value, key)  # type: ignore[arg-type]
    if fitting := [result for type_ in types for result in _convert_scalar(value, type_)]:
        return fitting[0]
    raise UserError(f"{key}: {_describe_mismatch(value, types)}")


def _convert_scalar(value: Any, type_: Any) -> list[Any]:
    """[the value] if it fits, else []; numbers may be in quotes where only a number is allowed."""
    text = value if isinstance(value, str) else ""
    if get_origin(type_) is Literal:
        return [value] if value in get_args(type_) else []
    if type_ is Any or type(value) is type_:
        return [value]
    if type_ is int and re.fullmatch(r"[-+]?\d+", text):
        return [int(text)]
    if type_ is float and (type(value) is int or re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text)):
        return [float(value)]
    return []


def _describe_mismatch(value: Any, types: tuple[Any, ...]) -> str:
    shown = "no value" if value is None else str(value).lower() if isinstance(value, bool) else f'"{value}"'
    options = [str(option) for type_ in types if get_origin(type_) is Literal for option in get_args(type_)]
    others = [type_ for type_ in types if get_origin(type_) is not Literal and type_ is not NoneType]
    if not others:
        return f"{shown} is none of {', '.join(options)}.{did_you_mean(str(value), options)}"
    names = [NAMES.get(get_origin(type_) or type_, "keys with values") for type_ in others]
    hint = ""
    if str in types and isinstance(value, bool):
        hint = '; YAML reads no, off, yes and on as true or false: quote them, as "no"'
    elif str in types and isinstance(value, int | float | date):
        hint = "; put it in quotes"
    elif names == ["a list"] and not isinstance(value, dict):
        hint = f"; write a list: [{value}]"
    return f"expected {' or '.join([*options, *names])}, got {shown}{hint}"
