"""Tables beside images: which column has the images, and which the labels, numbers, groups and splits."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from project.data.config import given_split
from project.data.proposal.draft import unclear
from project.data.proposal.words import GROUPS, LABELS, word_set, words
from project.data.raw.tables import IdIndex, Table, read_table
from project.errors import UserError

SUFFIXES = {".csv", ".tsv"}
SPLITS = word_set("split set fold partition subset usage")
NOT_VALUES = word_set("width height w h x y xmin ymin xmax ymax id index unnamed url size_bytes")
AMOUNTS = word_set(
    "n num number count counts cells age size area score value intensity length amount mean total ratio share"
)
MIN_ROWS = 0.5  # of the images or of the rows must match
MOST_CLASSES = 100


@dataclass
class TableColumns:
    """The columns of a table, for the key `table`, with reasons."""

    keys: dict[str, Any]
    reasons: list[str]
    images: set[str]  # files that have a row
    labels: Counter[str] = field(default_factory=Counter)


def find_table(raw: Path, names: list[str], images: dict[str, str]) -> TableColumns | None:
    """The table with a row for each image, or None.

    `images` has the file of each id that a table may use.

    Raises:
        UserError: Several tables are about the images, or the meaning of columns is not clear.
    """
    tables = []
    for name in names:
        if PurePosixPath(name).suffix.lower() in SUFFIXES:
            table = read_table(raw / name)
            is_form = "submission" in words(name) or len(table.columns) < 2  # to be filled in, or a list of images
            if not is_form and (match := _id_column(table, images)):
                tables.append((name, table, *match))
    if len(tables) > 1:
        listed = ", ".join(name for name, *_ in tables)
        raise UserError(
            f"several tables are about the images: {listed}. Join them into one with a row for each image (a column "
            "`split` can say which table a row is from), or remove those that are not needed."
        )
    return _columns(*tables[0]) if tables else None


def _id_column(table: Table, images: dict[str, str]) -> tuple[str, dict[int, str]] | None:
    """The column that names images, and the file of each row; None if there is none."""
    index, candidates = IdIndex(images), dict[str, dict[int, str]]()
    for column in table.columns:
        cells = [row[column] for row in table.rows]
        rows = {i: images[id_] for i, cell in enumerate(cells) if cell and (id_ := index.find(cell)) in images}
        if len(rows) >= MIN_ROWS * min(len(images), len(cells)) > 0:
            candidates.setdefault(column, rows)
    return max(candidates.items(), key=lambda item: len(item[1]), default=None)


def _columns(name: str, table: Table, id_column: str, rows: dict[int, str]) -> TableColumns:
    by_file: dict[str, list[dict[str, str]]] = {}
    for i, file in rows.items():
        by_file.setdefault(file, []).append(table.rows[i])
    if equal := [file for file, of in by_file.items() if len(of) > 1 and all(row == of[0] for row in of)]:
        raise UserError(f'"{name}" has the same row more than once, for {equal[0]}: delete all but one.')
    if repeated := [file for file, of in by_file.items() if len(of) > 1]:
        raise UserError(
            f'"{name}" has several rows for one image, such as {repeated[0]}: boxes, or outlines in run lengths, are '
            "not supported. Make label images of them (`instances:`), or a table with one row for each image."
        )
    columns = {c: [table.rows[i][c] for i in rows] for c in table.columns if c and c != id_column}
    columns = {c: cells for c, cells in columns.items() if any(cells)}
    split = [c for c, cells in columns.items() if {*words(c)} & SPLITS and all(given_split(x) for x in cells if x)]
    group = [c for c, cells in columns.items() if {*words(c)} & GROUPS and c not in split and len({*cells}) > 2]
    label, values = _labels_and_values(name, {c: cells for c, cells in columns.items() if c not in split + group})
    chosen = {key: options[0] for key, options in (("split", split), ("group", group), ("label", label)) if options}
    keys: dict[str, Any] = {"path": name, "id": id_column} | chosen | ({"values": values} if values else {})
    reasons = [f"column {id_column} names {len(rows)} of the images"]
    reasons += [f"{c}: {len({*columns[c]})} different, by the name" for c in chosen.values()]
    if unused := [c for c in columns if c not in {*chosen.values(), *values}]:
        reasons.append(f"not used: {', '.join(unused)}")
    labels = Counter(columns[label[0]]) if label else Counter[str]()
    if separator := next((text for text in ";|, " if label and _is_list(label[0], labels, text)), ""):
        keys["separator"], labels = separator, Counter()
        reasons.append(f'several classes in one cell, separated by "{separator}"')
    return TableColumns(keys, reasons, {*rows.values()}, labels)


def _is_list(column: str, labels: Counter[str], separator: str) -> bool:
    """Whether cells hold several classes; with spaces only numbers, or what is called tags or labels."""
    parts = Counter(part.strip() for cell in labels for part in cell.split(separator))
    if separator == " " and not {*words(column)} & {"tags", "labels", "targets"} and not all(map(_is_number, parts)):
        return False
    return any(separator in cell for cell in labels) and max(parts.values()) > 1


def _labels_and_values(name: str, columns: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """The column of the classes, if any, else those of numbers to be predicted.

    Raises:
        UserError: Several columns may be the classes, or numbers may be classes.
    """
    columns = {c: cells for c, cells in columns.items() if not {*words(c)} <= NOT_VALUES}
    numeric = [c for c, cells in columns.items() if all(map(_is_number, filter(None, cells)))]
    texts = [c for c, cells in columns.items() if c not in numeric and 1 < len({*cells}) <= len(cells) / 2 + 1]
    options = [c for c in columns if {*words(c)} & LABELS] or [c for c in texts if len({*columns[c]}) <= MOST_CLASSES]
    if len(options) > 1:
        question = f'Several columns of "{name}" may be the classes of the images.'
        raise unclear(question, {"table": {"path": name, "label": "|".join(options)}})
    fractional = [c for c in numeric if any(float(x) % 1 for x in columns[c] if x)]
    if options:
        return ([], options) if options[0] in fractional else (options, [])
    values = [c for c in numeric if len({*columns[c]}) > 1 and all(columns[c])]
    for column in values:
        n = len({*columns[column]})
        is_amount = column in fractional or {*words(column)} & AMOUNTS
        if not is_amount and n <= min(10, len(columns[column]) / 2):
            raise unclear(
                f'The column {column} of "{name}" has {n} different whole numbers: classes (`label`), or `values`?',
                {"table": {"path": name, "label": column, "values": [column]}},
            )
    return [], values


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False
