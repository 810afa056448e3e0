"""Tables beside the images: CSV, or GeoJSON, with labels, groups, splits and values."""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from project.data.config import DatasetConfig, TableConfig, given_split
from project.data.raw.images import SUFFIXES, naming
from project.data.raw.patterns import nfc
from project.data.raw.samples import Problems, Sample
from project.errors import UserError, listed, nearest

GEOJSON = {".geojson", ".json"}
Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        path: Of the file.
        columns: Names, in their order.
        rows: Column -> cell; "" where there is none.
    """

    path: Path
    columns: list[str]
    rows: list[Row]

    def check_columns(self, columns: Sequence[str | None]) -> None:
        """Raise a `UserError` if one of these, None aside, is missing or stands twice."""
        for column in columns:
            if column and (times := self.columns.count(column)) != 1:
                wrong = f'has no column "{column}"' if not times else f'has {times} columns called "{column}"'
                raise UserError(f'the table "{self.path}" {wrong}.{nearest(column, set(self.columns) - {column})}')

    def by_id(self, column: str, ids: Sequence[str]) -> dict[str, list[Row]]:
        """The rows of each of these ids.

        The table may name the image file, as "img_1.tif" for the id "img_1"; the suffix counts only if no id has it.
        """
        known, found = set(ids), defaultdict[str, list[Row]](list)
        for row in self.rows:
            found[matching(row[column], known)].append(row)
        return found


def matching(text: str, ids: set[str]) -> str:
    """The one of `ids` that the text means: itself, or what it is without the suffix of an image; else the text."""
    path = Path(text)
    if text not in ids and path.suffix.lower() in SUFFIXES:
        stem = text.removesuffix(path.suffix)
        for candidate in (stem, stem.removesuffix(".ome")):
            if candidate in ids:
                return candidate
    return text


def read_table(path: Path) -> Table:
    """Read a CSV file, or a GeoJSON file (`.geojson`, `.json`), whose features are the rows.

    CSV is UTF-8, with or without a byte order mark, and separated by the one of , ; and tab that stands most often in
    its first line. Spaces around cells are dropped. In GeoJSON the properties are the columns: numbers stay as they
    are written, true and false become "true" and "false", null an empty cell, a list its items joined by ";", and an
    object columns such as "classification.name". A feature without the property "id" has its own `id` there.

    Raises:
        UserError: There is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(f'the table "{path}" does not exist')
    if path.suffix.lower() in GEOJSON:
        rows = [properties(feature) for feature in read_features(path)]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        return Table(path, columns, [{column: row.get(column, "") for column in columns} for row in rows])
    text = read_text(path)
    first = text.partition("\n")[0]
    with naming(path):
        lines = [[cell.strip() for cell in line] for line in _csv(text, max(",;\t", key=first.count))]
    if not lines:
        return Table(path, [], [])
    columns, *cells = lines
    padding = [""] * len(columns)
    # A row may be too short. Cells beyond the last column have no name.
    return Table(path, columns, [dict(zip(columns, line + padding, strict=False)) for line in cells])


def _csv(text: str, delimiter: str) -> list[list[str]]:
    return [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if line]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, accented letters with one code each.

    Raises:
        UserError: It has another encoding, or cannot be read.
    """
    with naming(path):
        content = path.read_bytes()
        try:
            return nfc(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(
                f'cannot be read: line {line} is not in UTF-8; save the file in that encoding (in Excel "CSV UTF-8")'
            ) from error


def read_features(path: Path) -> list[dict[str, Any]]:
    """The features of a GeoJSON file, all numbers as text.

    The file holds a FeatureCollection, a list of features, or a single one.

    Raises:
        UserError: It is something else, or cannot be read.
    """
    text = read_text(path)
    with naming(path):
        content = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    if isinstance(content, dict):
        content = content.get("features", [content] if content.get("type") == "Feature" else None)
    if not isinstance(content, list) or not all(isinstance(f, dict) and f.get("type") == "Feature" for f in content):
        raise UserError(f"{path}: this is no GeoJSON with features")
    return content


def properties(feature: dict[str, Any]) -> Row:
    """The properties of a feature as cells of a table."""
    found: Row = {}
    _flatten(feature.get("properties") or {}, "", found)
    if "id" in feature:
        found.setdefault("id", _cell(feature["id"]))
    return found


def _flatten(values: dict[str, Any], prefix: str, into: Row) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{name}.", into)
        else:
            into[f"{prefix}{name}"] = _cell(value)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ";".join(map(_cell, value))
    return "" if value is None else str(value).strip()


def join_table(samples: list[Sample], config: DatasetConfig, problems: Problems) -> list[Sample]:
    """The samples with what the table says of them, if there is one.

    Args:
        samples: All samples.
        config: Of the dataset. Its `group`, a template, goes before the table's column.
        problems: Gets the samples without exactly one complete row.

    Raises:
        UserError: No such table or column, or labels that the samples have already.
    """
    if not (options := config.table):
        return samples
    table = read_table(Path(config.raw) / options.path)
    table.check_columns([options.id, options.label, options.group, options.split, *options.values])
    if options.label and (labelled := [sample.id for sample in samples if sample.label is not None]):
        raise UserError(f"labels come from the table and with the samples, as that of {labelled[0]}; keep one of them")
    rows, joined = table.by_id(options.id, [sample.id for sample in samples]), []
    for sample in samples:
        found = rows.get(sample.id, [])
        if len(found) != 1:
            problems.add(sample.id, f'{len(found) or "no"} rows with this "{options.id}"')
            continue
        wrong = _wrong_cells(found[0], options, grouped=bool(config.group))
        for what in wrong:
            problems.add(sample.id, what)
        if not wrong:
            joined.append(_with_row(sample, found[0], options, grouped=bool(config.group)))
    there = f' (its ids are as "{table.rows[0][options.id]}")' if table.rows else ""
    problems.stop_if_any(f'The table "{table.path}"{there} does not fit the images:')
    return problems.without_skipped(joined)


def _wrong_cells(row: Row, table: TableConfig, grouped: bool) -> list[str]:
    needed = (None if table.separator else table.label, None if grouped else table.group, *table.values)
    wrong = [f'the "{column}" is empty' for column in needed if column and not row[column]]
    numbers = [column for column in table.values if row[column] and _number(row[column]) is None]
    wrong += [f'the "{column}" is no number: "{row[column]}"' for column in numbers]
    if table.split and row[table.split] and not given_split(row[table.split]):
        wrong.append(f'the "{table.split}" is none of train, val and test: "{row[table.split]}"')
    return wrong


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _with_row(sample: Sample, row: Row, table: TableConfig, grouped: bool) -> Sample:
    changes: dict[str, Any] = {}
    if table.label and table.separator:
        changes["label"] = tuple(name for text in row[table.label].split(table.separator) if (name := text.strip()))
    elif table.label:
        changes["label"] = row[table.label]
    if table.group and not grouped:
        changes["group"] = row[table.group]
    if table.split:
        changes["split"] = given_split(row[table.split])
    if table.values:
        changes["values"] = tuple(float(row[column]) for column in table.values)
    return replace(sample, **changes)


def apply_split_file(samples: list[Sample], config: DatasetConfig, problems: Problems) -> list[Sample]:
    """The samples with the splits of `split.file`, if there is one; those that are not in it have none given.

    Args:
        samples: All samples.
        config: Of the dataset.
        problems: Gets samples that stand in the file twice, or with an unknown split.

    Raises:
        UserError: No such file or column, or no row is about one of the samples.
    """
    if not config.split.file:
        return samples
    table = read_table(Path(config.raw) / config.split.file)
    table.check_columns(["id", "split"])
    if given := [sample.id for sample in samples if sample.split]:
        raise UserError(f"splits come from `split.file` and with the samples, as that of {given[0]}; keep one of them")
    rows, found = table.by_id("id", [sample.id for sample in samples]), []
    if not any(sample.id in rows for sample in samples):
        there = [row["id"] for row in table.rows[:3]]
        raise UserError(f'"{table.path}" has none of the ids, such as {samples[0].id}; it has\n{listed(there)}')
    for sample in samples:
        splits = [row["split"] for row in rows.get(sample.id, [])]
        split = given_split(splits[0]) if splits else None
        if len(splits) > 1:
            problems.add(sample.id, f"{len(splits)} rows")
        elif splits and not split:
            problems.add(sample.id, f'the split is none of train, val and test: "{splits[0]}"')
        else:
            found.append(replace(sample, split=split))
    problems.stop_if_any(f'The splits in "{table.path}" cannot be used:')
    return found
