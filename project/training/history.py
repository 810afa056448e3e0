"""history.csv: one line per epoch."""

import csv
from pathlib import Path
from typing import Any

from project.files import atomic_path


def append_epoch(path: Path, row: dict[str, Any]) -> None:
    """Add an epoch to history.csv; metrics that no epoch had before become new columns."""
    rows, columns = list[dict[str, Any]](), list[str]()
    if path.exists():
        with path.open(newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows, columns = list(reader), list(reader.fieldnames or ())
    columns += [name for name in row if name not in columns]
    with atomic_path(path) as tmp, tmp.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows([*rows, row])


def truncate_history(path: Path, n_epochs: int) -> None:
    """Keep the first epochs of history.csv, in whole lines: the later ones are trained again."""
    if not path.is_file():
        return
    header, *lines = _whole_lines(path)
    kept = [line for line in lines if int(line.partition(",")[0]) < n_epochs]
    if not kept:
        path.unlink()
        return
    with atomic_path(path) as tmp:
        tmp.write_bytes("".join([header, *kept]).encode())


def _whole_lines(path: Path) -> list[str]:
    """Header and complete lines; a killed process may leave half a line."""
    lines = path.read_bytes().decode().splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.endswith("\n")]


def count_epochs(path: Path) -> int:
    """Number of epochs in history.csv, 0 without one."""
    return max(len(_whole_lines(path)) - 1, 0)


def elapsed_seconds(path: Path, n_epochs: int) -> float:
    """Time of the first epochs in history.csv."""
    rows = list(csv.DictReader(_whole_lines(path)))[:n_epochs]
    return float(rows[-1]["seconds"]) if rows else 0.0
