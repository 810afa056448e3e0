"""Outdated data: the data config and the raw files of a dataset, compared with those that it was prepared from."""

import dataclasses
import json
import os
import shlex
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from project.data.config import DatasetConfig
from project.data.path_patterns import field_values
from project.data.raw import geojson
from project.data.raw.patterns import Pattern, files_below
from project.data.raw.readers import READERS
from project.data.raw.text import nfc
from project.data.store import SplitReader, read_raw_files
from project.errors import UserError

RawFiles = dict[str, tuple[int, int]]  # path, relative to the raw folder if it is below -> bytes, mtime in ns
MAX_NAMES = 6  # keys in a message
ORDERED = ("image", "target", "unlabelled")  # the order of these keys is that of the channels
# Without these as they were, the files that are expected now cannot be compared with those that were found.
FILE_KEYS = {"raw", "image", "target", "unlabelled", "mask", "instances", "polygons", "arrays", "source", "table"}


def list_raw_files(config: DatasetConfig, known: Iterable[str | Path]) -> RawFiles:
    """Sizes and time stamps of the files that a dataset is made from.

    These are the known files that exist (paths, or names as here), and all that fit one of the patterns; for a
    `source`, all below `raw` of the same kinds as those that are known.
    """
    raw = Path(config.raw)
    names = {_relative(path, raw) for path in known}
    tables = (config.table and config.table.path, config.split.file, config.polygons and config.polygons.path)
    names |= {name for name in tables if name and "{" not in name}
    if raw.is_dir() and (config.image or config.source):
        names |= _expected(config, files_below(raw), names)
    stamps = RawFiles()
    for name in names:
        try:
            status = os.stat(os.path.join(raw, name))  # noqa: PTH116, PTH118 - a quarter of the time
        except OSError:
            continue
        stamps[name.encode("utf-8", "backslashreplace").decode()] = status.st_size, status.st_mtime_ns
    return dict(sorted(stamps.items()))


def _relative(path: str | Path, raw: Path) -> str:
    return str(path.relative_to(raw)) if isinstance(path, Path) and path.is_relative_to(raw) else str(path)


def _expected(config: DatasetConfig, names: list[str], known: Collection[str]) -> set[str]:
    if config.source:
        suffixes = {Path(name).suffix for name in known}
        return {name for name in names if Path(name).suffix in suffixes}
    patterns = [pattern for pattern in config.all_patterns() if "{" in pattern]
    values = dict.fromkeys(patterns, field_values(patterns))
    values |= {text: field_values([text]) for text in config.unlabelled.values()}
    regexes = [Pattern.parse(text, (*READERS, *geojson.SUFFIXES), each).regex for text, each in values.items()]
    return {name for name in names if any(regex.fullmatch(nfc(name)) for regex in regexes)}


def describe_changes(folder: Path, config: DatasetConfig | None, config_path: Path) -> str:
    """One line about what has changed since a dataset was prepared, or nothing.

    Raw files that are not there at all, as on another machine, are no change. `config` is the data config as it is now;
    None where it cannot be read any more.
    """
    source = SplitReader(folder / "train.h5").attributes.get("source") or {}
    before = source.get("config") if isinstance(source, dict) else None
    if not isinstance(before, dict):
        return ""  # written by other means than `make data`
    if config is None:
        changes, keys = [f"{config_path} has changed since then and cannot be read any more"], list[str]()
    else:
        keys = changed_keys(before, _plain(config), _plain(DatasetConfig("", {"": "{id}.tif"})))
        shown = ", ".join(keys[:MAX_NAMES]) + (f" and {len(keys) - MAX_NAMES} more" if len(keys) > MAX_NAMES else "")
        changes = [f"{config_path} has changed since then ({shown})"] if keys else []
        if (recorded := read_raw_files(folder / "train.h5")) and "raw" not in keys:
            changes += _changed_files(
                recorded, config, additions=FILE_KEYS.isdisjoint(key.split(".")[0] for key in keys)
            )
    if not changes:
        return ""
    command = f"make data DATASET={shlex.quote(folder.name)}"
    return f"{folder} is outdated: {', and '.join(changes)}; run `{command}` to prepare it again"


def _plain(config: DatasetConfig) -> dict[str, Any]:
    """As in the attribute `source`."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def changed_keys(before: dict[str, Any], now: dict[str, Any], default: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys that differ; a key that the earlier version of the code did not know had its default."""
    keys = []
    for key, value in now.items():
        earlier = before.get(key, default.get(key, value))
        if key in ("split", "table", "polygons", "sizes") and isinstance(value, dict) and isinstance(earlier, dict):
            keys += changed_keys(earlier, value, default.get(key) or {}, f"{key}.")
        elif earlier != value or (key in ORDERED and isinstance(value, dict) and [*earlier] != [*value]):
            keys.append(prefix + key)
    return keys


def _changed_files(recorded: RawFiles, config: DatasetConfig, additions: bool) -> list[str]:
    try:
        now = list_raw_files(config, recorded)
    except UserError:  # the folder cannot be read, or the patterns are no longer valid
        return []
    if recorded.keys().isdisjoint(now):
        return []  # the raw data is elsewhere
    kinds = {
        "changed": [name for name, stamps in recorded.items() if now.get(name, stamps) != stamps],
        "removed": [name for name in recorded if name not in now],
        "added": [name for name in now if name not in recorded] if additions else [],
    }
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
    example = next((names[0] for names in kinds.values() if names), None)
    return [f'raw files have changed since then ({counts}, such as "{example}")'] if example else []
