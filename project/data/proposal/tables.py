"""Tables beside images: which column has the images, and which the labels, numbers, groups and splits."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from project.data.config import given_split
from project.data.proposal.proposal import ambiguous
from project.data.proposal.words import GROUPS, word_set, words
from project.data.raw.ids import IdIndex
from project.data.raw.tables import Table, read_table
from project.errors import UserError

SUFFIXES = {".csv", ".tsv"}
LABELS = word_set("label labels class classes target category diagnosis dx kind type species breed phenotype tags")
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

    keys: dict[str, object]
    reasons: list[str]
    images: set[str]  # files that have a row
    labels: Counter[str] = field(default_factory=Counter)


def find_table(raw: Path, names: list[str], images: dict[str, str]) -> TableColumns | None:
    """The table with a row for each image, or None.

    `images` has the file of each id that a table may use.

    Raises:
        UserError: Several tables are about the images, or the meaning of columns is not clear.
    """
    found = []
    for name in names:
        if PurePosixPath(name).suffix.lower() in SUFFIXES:
            table = read_table(raw / name)
            is_form = "submission" in words(name) or len(table.columns) < 2  # to be filled in, or a list of images
            if not is_form and (match := _id_column(table, images)):
                found.append((name, table, *match))
    if len(found) > 1:
        listed = ", ".join(name for name, *_ in found)
        raise UserError(
            f"several tables are about the images: {listed}. Join them into one with a row for each image (a column "
            "`split` can say which table a row is from), or remove those that are not needed."
        )
    return _columns(*found[0]) if found else None


def _id_column(table: Table, images: dict[str, str]) -> tuple[str, dict[int, str]] | None:
    """The column that names images, and the file of each row; None if there is none."""
    index = IdIndex(images)
    best: tuple[str, dict[int, str]] | None = None
    for column in dict.fromkeys(table.columns):
        cells = [row[column] for row in table.rows]
        rows = {i: images[id_] for i, cell in enumerate(cells) if cell and (id_ := index.find(cell)) in images}
        if len(rows) >= MIN_ROWS * min(len(images), len(cells)) > 0 and len(rows) > len(best[1] if best else ()):
            best = column, rows
    return best


def _columns(name: str, table: Table, id_column: str, rows: dict[int, str]) -> TableColumns:
    if repeated := [file for file, n in Counter(rows.values()).items() if n > 1]:
        raise UserError(
            f'"{name}" has several rows for one image, such as {repeated[0]}: boxes, or outlines in run lengths, are '
            "not supported. Make label images of them (`instances:`), or a table with one row for each image."
        )
    columns = {c: [table.rows[i][c] for i in rows] for c in dict.fromkeys(table.columns) if c and c != id_column}
    columns = {c: cells for c, cells in columns.items() if any(cells)}
    keys: dict[str, object] = {"path": name, "id": id_column}
    reasons = [f"column {id_column} names {len(rows)} of the images"]
    split = [c for c, cells in columns.items() if {*words(c)} & SPLITS and all(given_split(x) for x in cells if x)]
    group = [c for c, cells in columns.items() if {*words(c)} & GROUPS and c not in split and len({*cells}) > 2]
    others = {c: cells for c, cells in columns.items() if c not in split + group}
    for key, chosen in (("split", split), ("group", group)):
        if chosen:
            keys[key] = chosen[0]
            reasons.append(f"{chosen[0]}: {len({*columns[chosen[0]]})} different, a {key} by its name")
    if len(group) > 1:
        reasons.append(f"other columns that may be groups: {', '.join(group[1:])}")
    label, values = _labels_and_values(name, others)
    labels = Counter[str]()
    if label:
        keys["label"], labels = label, Counter(others[label])
        reasons.append(f"{label}: {len(labels)} classes")
        texts = [cell for cell in others[label] if cell]
        if separator := next((s for s in (";", "|", ",", " ") if _is_list(label, texts, s)), ""):
            keys["separator"], labels = separator, Counter()
            reasons.append(f'several classes in one cell, separated by "{separator}"')
    if values:
        keys["values"] = values
        reasons.append(f"{', '.join(values)}: numbers, to be predicted")
    if unused := [c for c in columns if c not in [*split, *group, label, *values]]:
        reasons.append(f"not used: {', '.join(unused)}")
    return TableColumns(keys, reasons, {*rows.values()}, labels)


def _is_list(column: str, cells: list[str], separator: str) -> bool:
    """Whether cells hold several classes; with spaces only numbers, or what is called tags or labels."""
    parts = Counter(part.strip() for cell in {*cells} for part in cell.split(separator))
    if separator == " " and not {*words(column)} & {"tags", "labels", "targets"} and not all(map(_is_number, parts)):
        return False
    return any(separator in cell for cell in cells) and max(parts.values()) > 1


def _labels_and_values(name: str, columns: dict[str, list[str]]) -> tuple[str, list[str]]:
    """The column of the classes, "" for none, and those of numbers."""
    columns = {c: cells for c, cells in columns.items() if not {*words(c)} <= NOT_VALUES}
    named = [c for c in columns if {*words(c)} & LABELS]
    numeric = [c for c, cells in columns.items() if all(map(_is_number, filter(None, cells)))]
    flags = [c for c in numeric if {*filter(None, columns[c])} <= {"0", "1", "0.0", "1.0"}]
    if len(flags) > 1 and not named:
        rows = zip(*(columns[c] for c in flags), strict=True)
        if all(sum(float(x or 0) for x in row) == 1 for row in rows):
            raise UserError(
                f'"{name}" has a column of 0 and 1 for each class ({", ".join(flags)}). Write one column with the '
                f'name: `t["label"] = t[{flags}].idxmax(axis=1)` with pandas'
            )
    texts = [c for c in columns if c not in numeric and 1 < len({*columns[c]}) <= MOST_CLASSES]
    texts = [c for c in texts if len({*columns[c]}) <= max(2, len(columns[c]) / 2)]
    if len(named) > 1 or (not named and len(texts) > 1):
        options = named if len(named) > 1 else texts
        raise ambiguous(
            f'Several columns of "{name}" may be the classes of the images: {", ".join(options)}.',
            {f"the classes are in {c}": {"table": {"path": name, "label": c}} for c in options},
        )
    label = named[0] if named else texts[0] if texts else ""
    if label in numeric and any(float(x) % 1 for x in columns[label] if x):
        return "", [label]
    values = [] if label else [c for c in numeric if len({*columns[c]}) > 1 and all(columns[c])]
    unsure = [c for c in values if not {*words(c)} & AMOUNTS and all(float(x) % 1 == 0 for x in columns[c])]
    if doubtful := [c for c in unsure if len({*columns[c]}) <= min(10, len(columns[c]) / 2)]:
        column = doubtful[0]
        raise ambiguous(
            f'The column {column} of "{name}" has {len({*columns[column]})} different whole numbers.',
            {
                "they are classes": {"table": {"path": name, "label": column}},
                "they are amounts, to be predicted as numbers": {"table": {"path": name, "values": [column]}},
            },
        )
    return label, values


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False
