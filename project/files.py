"""Files that are written completely or not at all, and names that stay in their folder."""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any


@contextmanager
def atomic_path(path: Path, suffix: str = "") -> Iterator[Path]:
    """A temporary file in the folder of `path`, which replaces `path` when the block ends without an error.

    Its name cannot be predicted, and it is created exclusively: a symbolic link that somebody placed in the folder is
    never followed. `path` itself is replaced even if it is a link. Its folder is created, permissions follow the umask.
    `suffix` is that of the temporary file, where a writer insists on one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{token_hex(4)}.partial{suffix}")
    temporary.open("xb").close()
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV, completely or not at all; the columns are those of all rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file completely or not at all.

    Raises:
        ValueError: A number is NaN or infinite, which JSON does not know.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def safe_file_name(text: str, longest: int = 200) -> str:
    """A text from a data file or a run as a file name of at most `longest` bytes.

    It cannot leave its folder, and different texts stay different.
    """
    plain = text.replace("/", "_")
    name = re.sub(r"[\\\x00-\x1f\x7f]", "_", plain)
    if name != plain or len(name.encode()) > longest:
        start = name.encode()[: longest - 9].decode(errors="ignore")
        name = f"{start}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name if name.strip(".") else f"_{name}"
