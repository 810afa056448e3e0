"""history.csv: one line per epoch."""

import csv
from pathlib import Path
from typing import Any

from project.errors import UserError
from project.files import write_table


def read_history(path: Path) -> list[dict[str, str]]:
    """The epochs, as column -> cell; nothing if the file is missing, `UserError` if it is damaged."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if any(not row["epoch"].isdecimal() or None in row.values() for row in rows):
            raise ValueError("a line is cut off")
    except (ValueError, LookupError, csv.Error) as error:
        raise UserError(f'"{path}" is damaged: {error}; remove the damaged lines') from error
    return rows


def append_epoch(path: Path, row: dict[str, Any]) -> None:
    """Add an epoch to history.csv; metrics that no epoch had before become new columns."""
    write_table(path, [*read_history(path), row])


def truncate_history(path: Path, n_epochs: int) -> None:
    """Keep the first epochs of history.csv: the later ones are trained again."""
    if kept := [row for row in read_history(path) if int(row["epoch"]) < n_epochs]:
        write_table(path, kept)
    else:
        path.unlink(missing_ok=True)
