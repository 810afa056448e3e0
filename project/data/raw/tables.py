"""CSV tables beside the images: labels, groups, splits and values."""

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from project.data.config import DatasetConfig, TableConfig, given_split
from project.data.path_patterns import field_names, id_fields
from project.data.raw.ids import IdIndex
from project.data.raw.lazy_image import errors_mention
from project.data.raw.samples import Problems, Sample
from project.data.raw.text import read_text
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

    It is separated by the one of , ; tab and | with which most rows have as many cells as the header, or as a first
    line "sep=;" says. Spaces around cells and empty rows are dropped. Rows longer than the header are errors.
    """
    if not path.is_file():
        raise UserError(f'the table "{path}" does not exist')
    text = read_text(path)
    first, _, others = text.partition("\n")
    declared = re.fullmatch(r'"?sep=(.)"?', first.strip())
    header = re.sub(r'"[^"]*"', "", first)
    separators = [declared[1]] if declared else [separator for separator in ",;\t|" if separator in header] or [","]
    with errors_mention(path):
        candidates = [_parse_csv(others if declared else text, separator) for separator in separators]
    lines = max(candidates, key=_regularity)
    if not lines:
        return Table(path, [], [])
    columns = lines[0][1]
    if long := [(number, cells) for number, cells in lines if any(cells[len(columns) :])]:
        rows = [f"line {number + bool(declared)} has {len(cells)} cells: {', '.join(cells)}" for number, cells in long]
        raise UserError(
            f'"{path}": the header has {len(columns)} cells, but these rows have more:\n{bullet_list(rows)}\n'
            'Quote each cell that holds the separator, as "3,5", or separate by ; or tab.'
        )
    padding = [""] * len(columns)  # a row may be too short
    return Table(path, columns, [dict(zip(columns, cells + padding, strict=False)) for _, cells in lines[1:]])


def _parse_csv(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """Number of the line and cells of each row that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        return [(reader.line_num, cells) for row in reader if any(cells := [cell.strip() for cell in row])]
    except csv.Error as error:
        raise UserError(f"line {reader.line_num}: {error}; is a quotation mark not closed?") from error


def _regularity(lines: list[tuple[int, list[str]]]) -> tuple[float, int]:
    """How well a separator fits: the share of the rows with as many cells as the header, then the number of these."""
    n_columns = len(lines[0][1]) if lines else 0
    return sum(len(cells) == n_columns for _, cells in lines) / max(len(lines), 1), n_columns


def join_table(samples: list[Sample], config: DatasetConfig, problems: Problems) -> list[Sample]:
    """The samples with labels, groups, splits and values of the table, if there is one.

    A sample without exactly one complete row is a problem. The `group` of the configuration, a template, takes
    precedence over the table's column.
    """
    if not (options := config.table):
        return samples
    columns = [options.label, options.group, options.split, *options.values]
    table, rows, unknown = _rows_by_sample(options.path, options.id, columns, samples, config, problems)
    if options.label and (labeled := [sample.id for sample in samples if sample.label is not None]):
        raise UserError(f"labels come from the table and with the samples, as that of {labeled[0]}; keep one of them")
    if unknown:
        problems.notes.append(f'"{table.path}": {unknown}')
    if config.group:
        options = replace(options, group=None)
    joined = []
    for sample in samples:
        sample_rows = rows.get(sample.id, [])
        if len(sample_rows) != 1:
            problems.add(sample.id, f'{len(sample_rows) or "no"} rows with this "{options.id}"')
        elif messages := _invalid_cells(sample_rows[0], options):
            for message in messages:
                problems.add(sample.id, message)
        else:
            sample = _with_row(sample, sample_rows[0], options)
        joined.append(sample)  # also one with a problem: later steps may find more
    example = f' (its ids are as "{table.rows[0][options.id]}")' if table.rows else ""
    problems.raise_or_skip(
        f'The table "{table.path}"{example} does not fit the images, whose ids are {_id_form(samples, config)}:'
    )
    return problems.without_skipped(joined)


def _rows_by_sample(
    path: str,
    id_column: str,
    columns: Sequence[str | None],
    samples: list[Sample],
    config: DatasetConfig,
    problems: Problems,
) -> tuple[Table, dict[str, list[Row]], str]:
    """A table below the raw folder, its rows by the id of the sample, and how many rows are about no image."""
    raw = Path(config.raw)
    table = read_table(raw / path)
    for column in filter(None, [id_column, *columns]):
        if (times := table.columns.count(column)) != 1:
            problem = f'has {times} columns called "{column}"' if times else f'has no column "{column}"'
            names = ", ".join(f'"{name}"' for name in table.columns) or "none"
            hint = did_you_mean(column, set(table.columns) - {column})
            raise UserError(f'the table "{table.path}" {problem}.{hint} Its columns are {names}.')
    files = [
        (sample.id, [path.relative_to(raw) for path in ref.paths if path.is_relative_to(raw)])
        for sample in samples
        for refs in sample.images.values()
        for ref in refs
    ]
    index = IdIndex([*(sample.id for sample in samples), *problems.known], files)
    rows = defaultdict[str, list[Row]](list)
    for row in table.rows:
        rows[index.find(row[id_column])].append(row)
    problems.notes += index.describe_bridged(table.path)
    unknown = [text for text in rows if text not in index.ids]
    counts = f"{len(unknown)} of {len(table.rows)} rows"
    return table, rows, f'{counts} are about no image, such as "{unknown[0]}"' if unknown else ""


def _id_form(samples: list[Sample], config: DatasetConfig) -> str:
    """The form of the ids of the images, such as `{day}/{id}, such as "d1/a"`."""
    fields = id_fields(name for pattern in list(config.image.values())[:1] for name in field_names(pattern))
    form = "/".join(f"{{{name}}}" for name in fields)
    return f'{form}{", " * bool(form)}such as "{samples[0].id}"' if samples else form


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


def apply_split_file(samples: list[Sample], config: DatasetConfig, problems: Problems) -> list[Sample]:
    """The samples with the splits of `split.file`, if there is one; an empty split, or no row, gives none.

    Two rows or an unknown split are a problem of the sample. Images without a row give a warning, or an error beside
    rows about no image: the ids do not agree.
    """
    if not config.split.file:
        return samples
    if divided := [sample.id for sample in samples if sample.split]:
        raise UserError(
            f"splits come from `split.file` and with the samples, as that of {divided[0]}; keep one of them"
        )
    table, rows, unknown = _rows_by_sample(config.split.file, "id", ["split"], samples, config, problems)
    if missing := [sample.id for sample in samples if sample.id not in rows]:
        without = f'{len(missing)} of {len(samples)} images have no row, such as "{missing[0]}"'
        if unknown or not table.rows:
            raise UserError(
                f'"{table.path}": {without}; {unknown or "it has no rows"}.\n'
                f"The ids of images are {_id_form(samples, config)}. Correct the ids, or remove the rows and add one "
                "for each image; an empty split divides it by `fractions`."
            )
        problems.warnings.append(f'"{table.path}": {without}; they are divided by `fractions`')
    elif unknown:
        problems.notes.append(f'"{table.path}": {unknown}')
    result = []
    for sample in samples:
        splits = [row["split"] for row in rows.get(sample.id, [])]
        split = given_split(splits[0]) if splits else None
        if len(splits) > 1:
            problems.add(sample.id, f"{len(splits)} rows")
        elif any(splits) and not split:
            problems.add(sample.id, f'the split must be train, val or test, not "{splits[0]}"')
        result.append(replace(sample, split=split))
    problems.raise_or_skip(f'The splits in "{table.path}" cannot be used:')
    return problems.without_skipped(result)
