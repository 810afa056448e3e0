"""history.csv: one line per epoch."""

import csv
from pathlib import Path
from typing import Any

from project.errors import UserError
from project.files import write_table


def read_history(path: Path) -> list[dict[str, str]]:
    """The epochs, as column -> cell; nothing if the file is missing, `UserError` if it is no text."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (ValueError, csv.Error) as error:
        raise UserError(f'"{path}" is damaged: {error}; remove it') from error


def read_epochs(path: Path) -> list[dict[str, str]]:
    """The epochs of `read_history`, to be continued: `UserError` also if a line is damaged."""
    rows = read_history(path)
    for row in rows:
        if not (row.get("epoch") or "").isdecimal() or None in row.values():
            raise UserError(f'"{path}" is damaged, a line is cut off: {row}; remove the damaged lines')
    return rows


def append_epoch(path: Path, row: dict[str, Any]) -> None:
    """Add an epoch to history.csv; metrics that no epoch had before become new columns."""
    write_table(path, [*read_epochs(path), row])


def truncate_history(path: Path, n_epochs: int) -> None:
    """Keep the first epochs of history.csv: the later ones are trained again."""
    if kept := [row for row in read_epochs(path) if int(row["epoch"]) < n_epochs]:
        write_table(path, kept)
    else:
        path.unlink(missing_ok=True)
