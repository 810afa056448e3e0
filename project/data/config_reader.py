"""Data config from the content of a YAML file: keys and types are checked, and text in quotes stays text."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from project.data.config import DatasetConfig
from project.errors import UserError, did_you_mean

NAMES = {str: "text", int: "an integer", float: "a number", bool: "true or false", list: "a list"}


def build_config(content: Mapping[Any, Any]) -> DatasetConfig:
    """The data config that a YAML file holds.

    Args:
        content: Key -> value, as YAML was read.

    Raises:
        UserError: A key is unknown or missing, a value is of another type, or settings do not go together.
    """
    config: DatasetConfig = _section(DatasetConfig, content, "")
    return config


def _section(kind: type, content: Mapping[Any, Any], place: str) -> Any:
    """An instance of a dataclass; `place` is the dotted key of the section."""
    known = {field.name: field for field in fields(kind)}
    if unknown := [key for key in content if key not in known]:
        raise UserError(f'unknown key "{_join(place, unknown[0])}".{did_you_mean(str(unknown[0]), known)}')
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in content]:
        raise UserError(f'{place}{": " if place else ""}the key "{missing[0]}" is missing')
    kinds = get_type_hints(kind)
    return kind(**{key: _value(value, kinds[key], _join(place, key)) for key, value in content.items()})


def _join(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)


def _value(value: Any, kind: Any, place: str) -> Any:
    """The value as its type; of several types, the first that fits."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for each in kinds:
        origin, arguments = get_origin(each), get_args(each)
        if origin is dict and isinstance(value, dict):
            return {
                _value(_key(key, arguments[0]), arguments[0], f"{place}: key {key}"): _value(
                    inner, arguments[1], _join(place, key)
                )
                for key, inner in value.items()
            }
        if origin is list and isinstance(value, list):
            return [_value(inner, arguments[0], place) for inner in value]
        if is_dataclass(each) and isinstance(value, dict):
            return _section(each, value, place)  # type: ignore[arg-type]
    if fitting := [result for each in kinds for result in _scalar(value, each)]:
        return fitting[0]
    raise UserError(f"{place}: {_describe(value, kinds)}")


def _key(key: Any, kind: Any) -> Any:
    """A number may be the name of a channel, as in `{0: ...}`."""
    return str(key) if kind is str and type(key) is int else key


def _scalar(value: Any, kind: Any) -> list[Any]:
    """The value, if it fits a type without parts; numbers may be in quotes where only a number is meant."""
    text = value if isinstance(value, str) else ""
    if get_origin(kind) is Literal:
        return [value] if value in get_args(kind) else []
    if kind is Any or type(value) is kind:
        return [value]
    if kind is int and re.fullmatch(r"[-+]?\d+", text):
        return [int(text)]
    if kind is float and (type(value) is int or re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text)):
        return [float(value)]
    return []


def _describe(value: Any, kinds: tuple[Any, ...]) -> str:
    """What is wrong with a value, and how it is written."""
    shown = "no value" if value is None else str(value).lower() if isinstance(value, bool) else f'"{value}"'
    options = [str(option) for kind in kinds if get_origin(kind) is Literal for option in get_args(kind)]
    others = [kind for kind in kinds if get_origin(kind) is not Literal and kind is not NoneType]
    if not others:
        return f"{shown} is none of {', '.join(options)}.{did_you_mean(str(value), options)}"
    names = [NAMES.get(get_origin(kind) or kind, "keys with values") for kind in others]
    hint = ""
    if value is None:
        hint = "; leave the key out"
    elif str in kinds and isinstance(value, bool):
        hint = '; YAML reads no, off, yes and on as true or false: quote them, as "no"'
    elif str in kinds and not isinstance(value, list | dict):
        hint = "; put it in quotes"
    elif names == ["a list"] and not isinstance(value, dict):
        hint = f"; write a list: [{value}]"
    elif float in kinds and re.fullmatch(r"[-+]?\.?(inf|nan)", str(value), re.IGNORECASE):
        hint = "; write a finite number"
    return f"expected {' or '.join([*options, *names])}, got {shown}{hint}"
