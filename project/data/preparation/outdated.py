"""Outdated data: the data config and the raw files of a dataset, compared with those that it was prepared from."""

import os
import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from project.data.config import DatasetConfig
from project.data.raw.patterns import files_below
from project.data.raw.samples import first_ids
from project.data.store import SplitReader, read_raw_files
from project.errors import UserError

RawFiles = dict[str, tuple[int, int]]  # path, relative to the raw folder if it is below -> bytes, mtime in ns
MAX_NAMES = 6  # keys in a message
SECTIONS = ("split", "table", "polygons", "sizes")  # keys that hold others
ORDERED = ("image", "target", "unlabelled")  # the order of these keys is that of the channels


def list_raw_files(config: DatasetConfig, used: Iterable[str | Path]) -> RawFiles:
    """Sizes and time stamps of the files that a dataset is made from, and of all others below `raw` of their kinds.

    `used` are paths, or names as here; those that do not exist are left out.
    """
    raw = Path(config.raw)
    names = {str(p.relative_to(raw) if isinstance(p, Path) and p.is_relative_to(raw) else p) for p in used}
    if raw.is_dir():
        suffixes = {Path(name).suffix for name in names}
        names |= {name for name in files_below(raw) if Path(name).suffix in suffixes}
    names |= {name for name in (config.table and config.table.path, config.split.file) if name}
    stamps = RawFiles()
    for name in sorted(names):
        with suppress(OSError):
            status = os.stat(os.path.join(raw, name))  # noqa: PTH116, PTH118 - a quarter of the time
            stamps[name.encode("utf-8", "backslashreplace").decode()] = status.st_size, status.st_mtime_ns
    return stamps


def describe_changes(folder: Path, config: DatasetConfig | None, config_path: Path) -> str:
    """One line about what has changed since a dataset was prepared, or nothing.

    Raw files that are not there at all, as on another machine, are no change. `config` is the data config as it is now;
    None where it cannot be read any more.
    """
    source = SplitReader(folder / "train.h5").attributes.get("source")
    before = source.get("config") if isinstance(source, dict) else None
    if not isinstance(before, dict):
        return ""  # written by other means than `make data`
    if config is None:
        changes = [f"{config_path} has changed since then and cannot be read any more"]
    else:
        keys = changed_keys(before, config.as_json())
        changes = [f"{config_path} has changed since then ({first_ids(keys, MAX_NAMES)})"] if keys else []
        if "raw" not in keys:
            changes += _changed_files(read_raw_files(folder / "train.h5"), config)
    command = f"make data DATASET={shlex.quote(folder.name)}"
    return f"{folder} is outdated: {', and '.join(changes)}; run `{command}` to prepare it again" if changes else ""


def changed_keys(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys that differ, of those that both know."""
    keys = []
    for key, value in now.items():
        earlier = before.get(key, value)
        if key in SECTIONS and isinstance(value, dict) and isinstance(earlier, dict):
            keys += changed_keys(earlier, value, f"{key}.")
        elif earlier != value or (key in ORDERED and isinstance(value, dict) and [*earlier] != [*value]):
            keys.append(prefix + key)
    return keys


def _changed_files(recorded: RawFiles, config: DatasetConfig) -> list[str]:
    try:
        now = list_raw_files(config, recorded)
    except UserError:  # the folder cannot be read, or the patterns are no longer valid
        return []
    if recorded.keys().isdisjoint(now):  # none is recorded, or all the raw data is elsewhere
        return []
    kinds = {
        "changed": [name for name, stamps in recorded.items() if now.get(name, stamps) != stamps],
        "removed": [name for name in recorded if name not in now],
        "added": [name for name in now if name not in recorded],
    }
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
    example = next((names[0] for names in kinds.values() if names), "")
    return [f'raw files have changed since then ({counts}, such as "{example}")'] if counts else []
