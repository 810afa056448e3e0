"""CSV tables beside the images: labels, groups, splits and values."""

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from project.data.config import DatasetConfig, TableConfig, given_split
from project.data.raw.lazy_image import errors_mention
from project.data.raw.readers import READERS
from project.data.raw.samples import Problems, Sample, nfc
from project.errors import UserError, bullet_list, did_you_mean

Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table as text."""

    path: Path
    columns: list[str]
    rows: list[Row]  # column -> cell; "" for an empty one


def read_table(path: Path) -> Table:
    """Read a CSV file in UTF-8.

    Of , ; tab and | the one that most rows have as often as the header separates the cells; quoted text does not count.
    Spaces around cells and empty rows are dropped. Rows longer than the header are errors.
    """
    if not path.is_file():
        raise UserError(f'the table "{path}" does not exist')
    text = read_text(path)
    header, *rows = [line for line in re.sub(r'"[^"]*"', "", text).splitlines() if line.strip()] or [""]

    def regularity(separator: str) -> tuple[int, int]:
        n = header.count(separator)
        return n and 1 + sum(row.count(separator) == n for row in rows), n

    separator = max(",;\t|", key=regularity)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        lines = [(reader.line_num, cells) for row in reader if any(cells := [cell.strip() for cell in row])]
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}; is a quotation mark not closed?") from error
    columns = lines[0][1] if lines else []
    if long := [
        f"line {n} has {len(cells)} cells: {', '.join(cells)}" for n, cells in lines if any(cells[len(columns) :])
    ]:
        raise UserError(
            f'"{path}": the header has {len(columns)} cells, but these rows have more:\n{bullet_list(long)}\n'
            'Quote each cell that holds the separator, as "3,5", or separate by ; or tab.'
        )
    padding = [""] * len(columns)  # a row may be too short
    return Table(path, columns, [dict(zip(columns, cells + padding, strict=False)) for _, cells in lines[1:]])


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark."""
    with errors_mention(path):
        content = path.read_bytes()
        try:
            return nfc(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(
                f'cannot be read: line {line} is not in UTF-8; save the file in that encoding (in Excel "CSV UTF-8")'
            ) from error


class IdIndex:
    """Sample that a cell of a table means: by its id, by its file, or by either without leading zeros.

    "img_1.tif" means the id "img_1" unless that text is an id itself. A path means the image whose file below the raw
    folder ends with it, or the other way round ("phase/001.tif", "001", "/data/raw/phase/001.tif"). "80" means "080",
    as spreadsheets drop zeros. A text that could mean two samples means none.

    Args:
        ids: Of the samples.
        files: (id, its files as paths relative to the raw folder).
    """

    def __init__(self, ids: Iterable[str], files: Iterable[tuple[str, Sequence[Path]]] = ()) -> None:
        self.ids = set(ids)
        self.bridged: list[tuple[str, str]] = []
        self._ids = defaultdict[str, set[str]](set)  # by "/a/b" for the path a/b as a whole, "a/b" and "b" for its end
        for id_, paths in [*((id_, [Path(id_)]) for id_ in self.ids), *files]:
            for path in paths:
                for ending in _endings("/" + _without_suffix(path.as_posix())):
                    self._ids[ending].add(id_)
                    self._ids[_unpadded(ending)].add(id_)

    def find(self, text: str) -> str:
        """The id of the sample that is meant, or the text itself where it means none."""
        stem = _without_suffix(text)
        for candidate in (text, stem, stem.removesuffix(".ome")):
            if candidate in self.ids:
                return candidate
        path = stem.replace("\\", "/")
        for candidate in (path, *(f"/{ending}" for ending in _endings(path)), _unpadded(stem)):
            if len(ids := self._ids.get(candidate, set())) == 1:
                (id_,) = ids
                self.bridged.append((text, id_))
                return id_
        return text


def _endings(path: str) -> list[str]:
    """The paths "a/b/c", "b/c" and "c" for "a/b/c"; for "/a/b/c" that too."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _without_suffix(text: str) -> str:
    suffix = Path(text).suffix
    return text.removesuffix(suffix) if suffix.lower() in READERS else text


def _unpadded(text: str) -> str:
    """The text without leading zeros of numbers, and without ".0" of a whole one: "day1/080" becomes "day1/80"."""
    return re.sub(r"(?<![\d.])0+(?=\d)", "", re.sub(r"^(\d+)\.0$", r"\1", text))


def join_tables(samples: list[Sample], config: DatasetConfig, problems: Problems) -> list[Sample]:
    """The samples with labels, groups, splits and values of the table, and the splits of the split file.

    A sample without exactly one complete row is a problem; in a split file, no row or an empty cell gives no split. The
    `group` of the configuration, a template, takes precedence over the table's column.
    """
    if config.table:
        options = replace(config.table, group=None) if config.group else config.table
        samples = _join(samples, options, config, problems)
    if config.split.file:
        samples = _join(samples, TableConfig(config.split.file, split="split"), config, problems, is_optional=True)
    return samples


def _join(
    samples: list[Sample], options: TableConfig, config: DatasetConfig, problems: Problems, is_optional: bool = False
) -> list[Sample]:
    for name, column in (("label", options.label), ("split", options.split)):
        if column and (given := [sample.id for sample in samples if getattr(sample, name) is not None]):
            both = f"{name}s come from {options.path} and with the samples, as that of {given[0]}"
            raise UserError(f"{both}; keep one of them")
    table, rows = _rows_by_sample(options, samples, config, problems)
    ids, name = {sample.id for sample in samples} | problems.known, f'"{table.path}"'
    if unknown := [text for text in rows if text not in ids]:
        n = sum(len(rows[text]) for text in unknown)
        problems.notes.append(f'{name}: {n} of {len(table.rows)} rows are about no image, such as "{unknown[0]}"')
    if missing := [sample.id for sample in samples if is_optional and sample.id not in rows]:
        without = f'{name}: {len(missing)} of {len(samples)} images have no row, such as "{missing[0]}"'
        if unknown or not table.rows:  # the ids do not agree
            example = f', while rows such as "{unknown[0]}" are about no image' if unknown else ""
            raise UserError(f"{without}{example}")
        problems.warnings.append(f"{without}; they are divided by `fractions`")
    where = f'with this "{options.id}" in {table.path.name}'
    where += f', whose ids are as "{table.rows[0][options.id]}"' if table.rows else ""
    joined = []
    for sample in samples:
        members = rows.get(sample.id, [])
        if len(members) > 1 or not (members or is_optional):
            equal = "equal " if len(members) > 1 and all(row == members[0] for row in members) else ""
            advice = "; delete all but one" * bool(equal)
            problems.add(sample.id, f"{len(members) or 'no'} {equal}rows {where}{advice}")
        elif not members:
            joined.append(sample)
        elif messages := _invalid_cells(members[0], options):
            problems.pending += [(sample.id, message) for message in messages]
        else:
            joined.append(_with_row(sample, members[0], options))
    return joined


def _rows_by_sample(
    options: TableConfig, samples: list[Sample], config: DatasetConfig, problems: Problems
) -> tuple[Table, dict[str, list[Row]]]:
    """A table below the raw folder, and its rows by the id of the sample."""
    raw = Path(config.raw)
    table = read_table(raw / options.path)
    for column in filter(None, [options.id, options.label, options.group, options.split, *options.values]):
        if (times := table.columns.count(column)) != 1:
            problem = f'has {times} columns called "{column}"' if times else f'has no column "{column}"'
            names = ", ".join(f'"{name}"' for name in table.columns) or "none"
            hint = did_you_mean(column, set(table.columns) - {column})
            raise UserError(f'the table "{table.path}" {problem}.{hint} Its columns are {names}.')
    files = [(s.id, [path.relative_to(raw) for path in s.paths if path.is_relative_to(raw)]) for s in samples]
    index = IdIndex([*(sample.id for sample in samples), *problems.known], files)
    rows = defaultdict[str, list[Row]](list)
    for row in table.rows:
        rows[index.find(row[options.id])].append(row)
    if index.bridged:
        (text, id_), n = index.bridged[0], len(index.bridged)
        problems.notes.append(
            f'"{table.path}": {n} row{"s" * (n > 1)} found by the file or without leading zeros, such as "{text}" for '
            f'"{id_}"'
        )
    return table, rows


def _invalid_cells(row: Row, table: TableConfig) -> list[str]:
    needed = (None if table.separator else table.label, table.group, *table.values)
    messages = [f'the "{column}" is empty' for column in needed if column and not row[column]]
    for column in table.values:
        with suppress(ValueError):
            if not row[column] or math.isfinite(float(row[column])):
                continue
        messages.append(f'the "{column}" is not a number: "{row[column]}"')
    if table.split and row[table.split] and not given_split(row[table.split]):
        messages.append(f'the "{table.split}" must be train, val or test, not "{row[table.split]}"')
    return messages


def _with_row(sample: Sample, row: Row, table: TableConfig) -> Sample:
    label: str | tuple[str, ...] | None = row[table.label] if table.label else sample.label
    if table.label and table.separator:
        label = tuple(name for text in row[table.label].split(table.separator) if (name := text.strip()))
    return replace(
        sample,
        label=label,
        group=row[table.group] if table.group else sample.group,
        split=given_split(row[table.split]) if table.split else sample.split,
        values=tuple(float(row[column]) for column in table.values) if table.values else sample.values,
    )
