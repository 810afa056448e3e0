"""GeoJSON files: features, their properties as text, and the coordinate system."""

import json
from pathlib import Path
from typing import Any

from project.data.raw.lazy_image import errors_mention
from project.data.raw.text import read_text
from project.errors import UserError

SUFFIXES = {".geojson", ".json"}
NO_CRS = {"", "none", "null", "pixel", "pixels", "local"}  # names that some software writes for pixel coordinates
Feature = dict[str, Any]


def read_geojson(path: Path) -> list[Feature]:
    """The features of a GeoJSON file: a FeatureCollection, a list of features, or a single one; in pixels."""
    text = read_text(path)
    with errors_mention(path):
        content = json.loads(text)
    features = content
    if isinstance(content, dict):
        features = content.get("features", [content] if content.get("type") == "Feature" else None)
    if not isinstance(features, list) or not all(isinstance(f, dict) and f.get("type") == "Feature" for f in features):
        raise UserError(f"{path}: not a GeoJSON file with features")
    members = [content, *features] if isinstance(content, dict) else features
    if crs := next(filter(None, map(_crs_name, members)), ""):
        raise UserError(
            f'{path}: the outlines are in the coordinate system "{crs}", not in pixels of the image; convert them, and '
            "remove `crs` from the file"
        )
    return features


def _crs_name(member: dict[str, Any]) -> str:
    """The coordinate system in the member `crs`; The GeoJSON Format Specification (2008), section 3."""
    crs = member.get("crs")
    details = crs.get("properties") if isinstance(crs, dict) else None
    name = str(details["name"] if isinstance(details, dict) and "name" in details else crs or "")
    return "" if name.casefold() in NO_CRS else name


def properties(feature: Feature) -> dict[str, str]:
    """The properties of a feature as text; "" for null, and "classification.name" for the property of an object."""
    texts: dict[str, str] = {}
    waiting = list((feature.get("properties") or {}).items())
    for name, value in waiting:
        if isinstance(value, dict):
            waiting += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            texts[name] = "" if value is None else str(value).strip()
    return texts
