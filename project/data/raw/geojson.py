"""GeoJSON files: features, their properties as the cells of a table, and the coordinate system."""

import json
from pathlib import Path
from typing import Any

from project.data.raw.lazy_image import errors_mention
from project.data.raw.text import read_text
from project.errors import UserError

SUFFIXES = {".geojson", ".json"}
NO_CRS = {"", "none", "null", "pixel", "pixels", "local"}  # names that some software writes for pixel coordinates
Feature = dict[str, Any]


def read_geojson(path: Path) -> tuple[list[Feature], str]:
    """The features of a GeoJSON file, all numbers as text, and the name of the coordinate system; "" for none.

    The file holds a FeatureCollection, a list of features, or a single one.

    Raises:
        UserError: It is something else, or cannot be read.
    """
    text = read_text(path)
    with errors_mention(path):
        content = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    features = content
    if isinstance(content, dict):
        features = content.get("features", [content] if content.get("type") == "Feature" else None)
    if not isinstance(features, list) or not all(isinstance(f, dict) and f.get("type") == "Feature" for f in features):
        raise UserError(f"{path}: not a GeoJSON file with features")
    names = (_crs_name(member) for member in ([content, *features] if isinstance(content, dict) else features))
    return features, next(filter(None, names), "")


def _crs_name(member: dict[str, Any]) -> str:
    """The coordinate system in the member `crs`; The GeoJSON Format Specification (2008), section 3."""
    crs = member.get("crs")
    details = crs.get("properties") if isinstance(crs, dict) else None
    details = details if isinstance(details, dict) else {}
    name = str(details.get("name") or details.get("href") or details.get("code") or crs or "")
    return "" if details.get("name", name).casefold() in NO_CRS else name


def properties(feature: Feature) -> dict[str, str]:
    """The properties of a feature as the cells of a row.

    Numbers stay as they are written, true and false become "true" and "false", null an empty cell, a list its items
    joined by ";", and an object columns such as "classification.name". Without the property "id" it is the feature's.
    """
    row: dict[str, str] = {}
    _flatten(feature.get("properties") or {}, "", row)
    if "id" in feature:
        row.setdefault("id", _cell(feature["id"]))
    return row


def _flatten(values: dict[str, Any], prefix: str, row: dict[str, str]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{name}.", row)
        else:
            row[f"{prefix}{name}"] = _cell(value)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ";".join(map(_cell, value))
    return "" if value is None else str(value).strip()
