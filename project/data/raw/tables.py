"""Tables beside the images: CSV, or GeoJSON, with labels, groups, splits and values."""

import csv
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from project.data.config import DatasetConfig, TableConfig, given_split
from project.data.path_patterns import field_names, id_fields
from project.data.raw.georeference import declared_crs
from project.data.raw.ids import IdIndex
from project.data.raw.lazy_image import errors_mention
from project.data.raw.patterns import nfc
from project.data.raw.samples import Problems, Sample
from project.errors import UserError, bullet_list, did_you_mean

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
                known = ", ".join(f'"{name}"' for name in self.columns) or "none"
                hint = did_you_mean(column, set(self.columns) - {column})
                raise UserError(f'the table "{self.path}" {wrong}.{hint} Its columns are {known}.')

    def by_id(self, column: str, index: IdIndex) -> dict[str, list[Row]]:
        """The rows of each id; a row about no sample is found under its own text."""
        rows = defaultdict[str, list[Row]](list)
        for row in self.rows:
            rows[index.find(row[column])].append(row)
        return rows


def _index(samples: list[Sample], config: DatasetConfig, problems: Problems) -> IdIndex:
    raw = Path(config.raw)
    files = [
        (sample.id, [path.relative_to(raw) for path in ref.paths if path.is_relative_to(raw)])
        for sample in samples
        for refs in sample.images.values()
        for ref in refs
    ]
    return IdIndex([*(sample.id for sample in samples), *problems.known], files)


def _id_form(samples: list[Sample], config: DatasetConfig) -> str:
    """What the ids of the images look like, such as `{day}/{id}, such as "d1/a"`."""
    fields = id_fields(name for pattern in list(config.image.values())[:1] for name in field_names(pattern))
    form = "/".join(f"{{{name}}}" for name in fields)
    return f'{form}{", " * bool(form)}such as "{samples[0].id}"' if samples else form


def read_table(path: Path) -> Table:
    """Read a CSV file, or a GeoJSON file (`.geojson`, `.json`), whose features are the rows.

    CSV is UTF-8, with or without a byte order mark. It is separated by the one of , ; tab and | with which most rows
    have as many cells as the header, or as a first line "sep=;" says. Spaces around cells are dropped, and rows without
    any text. In GeoJSON the properties are the columns: numbers stay as they are written, true and false become "true"
    and "false", null an empty cell, a list its items joined by ";", and an object columns such as
    "classification.name". A feature without the property "id" has its own `id` there.

    Raises:
        UserError: There is no such file, it cannot be read, or rows have more cells than the header.
    """
    if not path.is_file():
        raise UserError(f'the table "{path}" does not exist')
    if path.suffix.lower() in GEOJSON:
        rows = [properties(feature) for feature in read_features(path)]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        return Table(path, columns, [{column: row.get(column, "") for column in columns} for row in rows])
    return _read_csv(path)


def _read_csv(path: Path) -> Table:
    text = read_text(path)
    first, _, after = text.partition("\n")
    declared = re.fullmatch(r'"?sep=(.)"?', first.strip())
    header = re.sub(r'"[^"]*"', "", first)
    separators = [declared[1]] if declared else [each for each in ",;\t|" if each in header] or [","]
    with errors_mention(path):
        lines = max((_lines(after if declared else text, each) for each in separators), key=_regularity)
    if not lines:
        return Table(path, [], [])
    columns = lines[0][1]
    if long := [(number, cells) for number, cells in lines if any(cells[len(columns) :])]:
        message = [
            f"line {number + bool(declared)} has {len(cells)} cells: {', '.join(cells)}" for number, cells in long
        ]
        raise UserError(
            f'"{path}": the header has {len(columns)} cells, but these rows have more:\n{bullet_list(message)}\n'
            'Quote each cell that holds the separator, as "3,5", or separate by ; or tab.'
        )
    padding = [""] * len(columns)  # a row may be too short
    return Table(path, columns, [dict(zip(columns, cells + padding, strict=False)) for _, cells in lines[1:]])


def _lines(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """Number of the line and cells of each row that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        return [(reader.line_num, cells) for row in reader if any(cells := [cell.strip() for cell in row])]
    except csv.Error as error:
        raise UserError(f"line {reader.line_num}: {error}; is a quotation mark not closed?") from error


def _regularity(lines: list[tuple[int, list[str]]]) -> tuple[float, int]:
    """How well a separator fits: the share of the rows with as many cells as the first, then the number of these."""
    n_columns = len(lines[0][1]) if lines else 0
    return sum(len(cells) == n_columns for _, cells in lines) / max(len(lines), 1), n_columns


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, accented letters with one code each.

    Raises:
        UserError: It has another encoding, or cannot be read.
    """
    with errors_mention(path):
        content = path.read_bytes()
        try:
            return nfc(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(
                f'cannot be read: line {line} is not in UTF-8; save the file in that encoding (in Excel "CSV UTF-8")'
            ) from error


def read_features(path: Path) -> list[dict[str, Any]]:
    """The features of a GeoJSON file; see `read_geojson`."""
    return read_geojson(path)[0]


def read_geojson(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The features of a GeoJSON file, all numbers as text, and the coordinate system that it declares.

    The file holds a FeatureCollection, a list of features, or a single one.

    Raises:
        UserError: It is something else, or cannot be read.
    """
    text = read_text(path)
    with errors_mention(path):
        content = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    features = content
    if isinstance(content, dict):
        features = content.get("features", [content] if content.get("type") == "Feature" else None)
    if not isinstance(features, list) or not all(isinstance(f, dict) and f.get("type") == "Feature" for f in features):
        raise UserError(f"{path}: this is no GeoJSON with features")
    return features, declared_crs(content)


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
    index = _index(samples, config, problems)
    rows, joined = table.by_id(options.id, index), list[Sample]()
    problems.notes += index.describe_bridged(table.path)
    if stray := [text for text in rows if text not in index.ids]:
        n = f"{len(stray)} of {len(table.rows)} rows"
        problems.notes.append(f'"{table.path}": {n} are about no image, such as "{stray[0]}"')
    for sample in samples:
        own_rows = rows.get(sample.id, [])
        wrong = [f'{len(own_rows) or "no"} rows with this "{options.id}"'] if len(own_rows) != 1 else []
        wrong = wrong or _wrong_cells(own_rows[0], options, grouped=bool(config.group))
        for what in wrong:
            problems.add(sample.id, what)
        joined.append(sample if wrong else _with_row(sample, own_rows[0], options, grouped=bool(config.group)))
    there = f' (its ids are as "{table.rows[0][options.id]}")' if table.rows else ""
    problems.raise_or_skip(
        f'The table "{table.path}"{there} does not fit the images, whose ids are {_id_form(samples, config)}:'
    )
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
    """The samples with the splits of `split.file`, if there is one; an empty split, or no row, gives none.

    Args:
        samples: All samples.
        config: Of the dataset.
        problems: Gets samples with two rows or an unknown split, and a warning about images without a row.

    Raises:
        UserError: No such file or column, or images without a row beside rows about no image: the ids do not agree.
    """
    if not config.split.file:
        return samples
    table = read_table(Path(config.raw) / config.split.file)
    table.check_columns(["id", "split"])
    if given := [sample.id for sample in samples if sample.split]:
        raise UserError(f"splits come from `split.file` and with the samples, as that of {given[0]}; keep one of them")
    index = _index(samples, config, problems)
    rows, divided = table.by_id("id", index), list[Sample]()
    problems.notes += index.describe_bridged(table.path)
    _check_rows(table, rows, samples, config, problems)
    for sample in samples:
        splits = [row["split"] for row in rows.get(sample.id, [])]
        split = given_split(splits[0]) if splits else None
        if len(splits) > 1:
            problems.add(sample.id, f"{len(splits)} rows")
        elif any(splits) and not split:
            problems.add(sample.id, f'the split is none of train, val and test: "{splits[0]}"')
        divided.append(replace(sample, split=split))
    problems.raise_or_skip(f'The splits in "{table.path}" cannot be used:')
    return problems.without_skipped(divided)


def _check_rows(
    table: Table, rows: dict[str, list[Row]], samples: list[Sample], config: DatasetConfig, problems: Problems
) -> None:
    """Count images without a row against rows about no image."""
    known = {sample.id for sample in samples} | problems.known
    missing = [sample.id for sample in samples if sample.id not in rows]
    stray = [text for text in rows if text not in known]
    without = f'{len(missing)} of {len(samples)} images have no row, such as "{missing[0]}"' if missing else ""
    about = f'{len(stray)} of {len(table.rows)} rows are about no image, such as "{stray[0]}"' if stray else ""
    if missing and (stray or not table.rows):
        raise UserError(
            f'"{table.path}": {without}; {about or "it has no rows"}.\n'
            f"The ids of images are {_id_form(samples, config)}. Correct the ids, or remove the rows and add one for "
            "each image; an empty split divides it by `fractions`."
        )
    if missing:
        problems.warnings.append(f'"{table.path}": {without}; they are divided by `fractions`')
    if stray:
        problems.notes.append(f'"{table.path}": {about}')
