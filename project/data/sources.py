"""Find the raw files of each sample by their names, and read them."""

import csv
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from project.data.config import DatasetConfig, TableConfig, given_split
from project.data.images import SUFFIXES, ImageFile, converted, naming, open_image
from project.errors import UserError, listed, nearest

Opener = Callable[[Path, str | None], ImageFile]
INTEGER_ROLES = ("mask", "instances")


@dataclass(frozen=True)
class Sample:
    """One sample before it is read.

    Attributes:
        id: Unique name; the fields of the pattern, joined by "/".
        group: What it must not be separated from.
        files: Role -> [(path, channel or None)] in channel order.
        label: Class as written in the table, the folder's name or the array; several where images may have several.
        page: Which page, where pages are samples.
        window: Region (y0, y1, x0, x1) to keep, or None for the whole image.
        split: The split it belongs to, if that is given.
        opened: Role -> image that comes from an array, in place of `files`.
    """

    id: str
    group: str
    files: dict[str, list[tuple[Path, int | None]]]
    label: str | tuple[str, ...] | None = None
    page: int | None = None
    window: tuple[int, int, int, int] | None = None
    split: str | None = None
    opened: dict[str, ImageFile] = field(default_factory=dict)

    @property
    def roles(self) -> list[str]:
        """What there is to read, in the order image, target, mask, instances."""
        return [*self.files, *self.opened]


@dataclass
class Problems:
    """Everything that is wrong, said at once instead of one by one."""

    lines: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        """Note one more."""
        self.lines.append(what)

    def stop_if_any(self, heading: str) -> None:
        """Raise a `UserError` that lists them."""
        if self.lines:
            raise UserError(f"{heading}\n{listed(self.lines)}\nNothing was written.")


@dataclass(frozen=True)
class Pattern:
    """A path pattern such as "{day}/phase/{id}.tif" or "stacks/{id}.tif[1]"."""

    text: str
    fields: tuple[str, ...]
    regex: re.Pattern[str]
    channel: int | None

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Compile a pattern.

        Raises:
            UserError: It has no `{id}`, an absolute path or `..`, or a file kind that cannot be read.
        """
        path, index = re.fullmatch(r"(.*?)(?:\[(\d+)\])?", text, re.DOTALL).groups()  # type: ignore[union-attr]
        parts = re.split(r"(\{[^\W\d]\w*\}|\*)", path)
        fields = tuple(dict.fromkeys(p[1:-1] for p in parts if p.startswith("{")))
        if "id" not in fields:
            raise UserError(f'the pattern "{text}" needs an {{id}}, for instance "images/{{id}}.tif"')
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise UserError(f'the pattern "{text}" must be a path below the raw folder')
        if Path(path).suffix.lower() not in SUFFIXES and not path.endswith("*"):
            raise UserError(f'the pattern "{text}" must end in one of {", ".join(sorted(SUFFIXES))}')
        regex, seen = "", set()
        for part in parts:
            if part == "*":
                regex += "[^/]*"
            elif part.startswith("{"):
                name = part[1:-1]
                regex += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)"
                seen.add(name)
            else:
                regex += re.escape(part)
        return cls(text, fields, re.compile(regex), int(index) if index else None)


def find_samples(config: DatasetConfig) -> list[Sample]:
    """All samples whose files are complete, in the order of their ids.

    Raises:
        UserError: No folder, no file, unpaired files, an id that appears twice, or a table that does not fit; all
            offenders are listed.
    """
    raw = Path(config.raw)
    if not raw.is_dir():
        raise UserError(f'the raw folder "{raw}" does not exist; put your images there or set `raw` to where they are')
    names = sorted(p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file() and not p.name.startswith("."))
    if not names:
        raise UserError(f'the raw folder "{raw}" is empty')
    problems = Problems()
    found = {
        role: [_match(Pattern.parse(text), names, problems) for text in patterns.values()]
        for role, patterns in config.patterns().items()
    }
    first_role, (first, *_) = next(iter(found.items()))
    if not first.files:
        text = next(iter(config.patterns()[first_role].values()))
        raise UserError(f'no file below "{raw}" fits "{text}"; for instance there is "{names[0]}"{_hint(names)}')
    for role, matches in found.items():
        for match in matches:
            if match.pattern.fields != first.pattern.fields and set(match.pattern.fields) != set(first.pattern.fields):
                raise UserError(
                    f'"{match.pattern.text}" and "{first.pattern.text}" must have the same fields, '
                    "or files cannot be paired"
                )
            for id_ in sorted(first.files.keys() - match.files.keys()):
                problems.add(f'{id_}: no {role} file for "{match.pattern.text}"')
            for id_ in sorted(match.files.keys() - first.files.keys()):
                problems.add(f'{id_}: {match.files[id_]} has no partner for "{first.pattern.text}"')
    problems.stop_if_any(f'The files below "{raw}" do not pair up:')
    _check_given_splits(first)
    rows = read_table(raw, config.table, list(first.files)) if config.table else {}
    return [_sample(id_, raw, first, found, rows.get(id_, {}), config) for id_ in sorted(first.files)]


def _check_given_splits(first: "_Matches") -> None:
    texts = Counter(fields["split"] for fields in first.fields.values() if "split" in fields)
    if strange := sorted(text for text in texts if not given_split(text)):
        told = [f'"{text}" ({texts[text]} files)' for text in strange]
        raise UserError(
            f'{{split}} in "{first.pattern.text}" must be train, val or test (or training, valid, validation, '
            f"testing), but is also:\n{listed(told)}\nGive that field another name, or rename these folders."
        )


def _hint(names: list[str]) -> str:
    kinds = sorted({Path(name).suffix or "(none)" for name in names})
    return f" ({len(names)} files of kind {', '.join(kinds[:6])})"


@dataclass
class _Matches:
    pattern: Pattern
    files: dict[str, str]
    fields: dict[str, dict[str, str]]


def _match(pattern: Pattern, names: list[str], problems: Problems) -> _Matches:
    matches = _Matches(pattern, {}, {})
    for name in names:
        if not (found := pattern.regex.fullmatch(name)):
            continue
        # The id is spelt in one order of the fields in every role, whatever the order in the path.
        ordered = sorted(pattern.fields, key=lambda f: (f == "id", f))
        id_ = "/".join(found[f] for f in ordered)
        if id_ in matches.files:
            problems.add(f"{id_}: found twice, {matches.files[id_]} and {name}")
        matches.files[id_] = name
        matches.fields[id_] = found.groupdict()
    return matches


def read_table(raw: Path, table: TableConfig, ids: list[str]) -> dict[str, dict[str, str]]:
    """The rows of the table, by the ids of the samples.

    Raises:
        UserError: No such table or column, or samples without exactly one complete row; all are listed.
    """
    path, problems = raw / table.path, Problems()
    if not path.is_file():
        raise UserError(f'the table "{path}" does not exist')
    # A cell is None where a row is too short; cells beyond the last column stand as a list under None.
    with naming(path), path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        lines = [{name: (row[name] or "").strip() for name in columns} for row in reader]
    for column in (table.id, table.label, table.group):
        if column and column not in columns:
            raise UserError(f'the table "{path}" has no column "{column}".{nearest(column, columns)}')
    rows = {row[table.id]: row for row in lines}
    times = Counter(row[table.id] for row in lines)
    for id_ in ids:
        if times[id_] != 1:
            problems.add(f'{id_}: {times[id_] or "no"} rows with this "{table.id}"')
            continue
        for column in (None if table.separator else table.label, table.group):
            if column and not rows[id_][column]:
                problems.add(f'{id_}: the "{column}" is empty')
    problems.stop_if_any("The table does not fit the images:")
    return rows


def table_label(row: dict[str, str], table: TableConfig | None) -> str | tuple[str, ...] | None:
    """The class, or classes, in a row of the table; None where the table has none."""
    if table is None or table.label is None:
        return None
    if not table.separator:
        return row[table.label]
    return tuple(name for text in row[table.label].split(table.separator) if (name := text.strip()))


def _sample(
    id_: str,
    raw: Path,
    first: _Matches,
    found: dict[str, list[_Matches]],
    row: dict[str, str],
    config: DatasetConfig,
) -> Sample:
    fields, group = first.fields[id_], id_
    if config.group:
        try:
            group = config.group.format(**fields)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            known = ", ".join(first.pattern.fields)
            raise UserError(f'group: "{config.group}" must be made of the fields {known}') from error
    elif config.table and config.table.group:
        group = row[config.table.group]
    files = {role: [(raw / m.files[id_], m.pattern.channel) for m in matches] for role, matches in found.items()}
    label = fields["label"] if "label" in fields else table_label(row, config.table)
    split = given_split(fields["split"]) if "split" in fields else None
    return Sample(id_, group, files, label, split=split)


def image_files(
    sample: Sample,
    role: str,
    axes: str | None = None,
    opened: Opener = open_image,
    convert: Literal["rgb", "grey"] | None = None,
) -> list[ImageFile]:
    """What makes up one role of a sample, in the order of the channels, opened but not read.

    Args:
        sample: Which one.
        role: "image", "target", "mask" or "instances".
        axes: See `open_image`.
        opened: Opens a file; one that remembers the last files spares decoding a stack anew for each of its pages.
        convert: See `converted`; for "image" only.

    Raises:
        UserError: A file cannot be opened; the message names it, as it does when reading fails later.
    """
    if role in sample.opened:
        with naming(sample.id):
            return [converted(sample.opened[role], convert) if convert and role == "image" else sample.opened[role]]
    found = []
    for path, channel in sample.files[role]:
        with naming(path):
            file = _pick(opened(path, axes), channel, sample.page)
            found.append(_named(path, converted(file, convert) if convert and role == "image" else file))
    return found


def _named(path: Path, file: ImageFile) -> ImageFile:
    def read() -> np.ndarray:
        with naming(path):
            return file.read()

    return replace(file, read=read)


def _pick(file: ImageFile, channel: int | None, page: int | None) -> ImageFile:
    """The channels of a file that a sample takes."""
    index = page if page is not None else channel
    if index is None:
        return file
    if index >= file.shape[0]:
        raise UserError(f"there is no {'channel' if page is None else 'page'} {index}: the file has {file.shape[0]}")
    return replace(file, shape=(1, *file.shape[1:]), read=lambda: file.read()[index : index + 1])


def read_role(
    sample: Sample,
    role: str,
    axes: str | None,
    opened: Opener = open_image,
    convert: Literal["rgb", "grey"] | None = None,
) -> np.ndarray:
    """The pixels of one role of a sample, whole or in its window; arguments as for `image_files`.

    Returns:
        (C, H, W) for image and target; (H, W) uint8 or uint16 for mask and instances.

    Raises:
        UserError: The files cannot be read or do not fit each other; the message names the file.
    """
    planes = [file.read() for file in image_files(sample, role, axes, opened, convert)]
    y0, y1, x0, x1 = sample.window or (0, *planes[0].shape[1:2], 0, planes[0].shape[2])
    array = np.concatenate([plane[:, y0:y1, x0:x1] for plane in planes])
    return _as_integers(array, sample, role) if role in INTEGER_ROLES else array


def _as_integers(array: np.ndarray, sample: Sample, role: str) -> np.ndarray:
    name = sample.files[role][0][0] if role in sample.files else sample.id
    if len(array) != 1:
        raise UserError(f"{name}: a {role} image has one channel, this has {len(array)}; save it as grey or palette")
    if array.dtype == np.float32:
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 65535 and (array % 1 == 0).all()):
            raise UserError(f"{name}: a {role} image holds whole numbers from 0 to 65535, this does not")
        array = array.astype(np.uint16)
    return array[0]


@dataclass(frozen=True)
class Labels:
    """How the labels of a dataset become numbers.

    Attributes:
        names: Class names in the order of their numbers.
        codes: Label as written -> class number.
    """

    names: list[str]
    codes: dict[str, int]

    def encode(self, samples: list[Sample]) -> np.ndarray:
        """(N,) int64 class numbers, or (N, K) int64 zeros and ones where images may have several classes."""
        if not isinstance(samples[0].label, tuple):
            return np.array([self.codes[str(sample.label)] for sample in samples], np.int64)
        labels = np.zeros((len(samples), len(self.names)), np.int64)
        for row, sample in zip(labels, samples, strict=True):
            row[[self.codes[text] for text in sample.label or ()]] = 1
        return labels


def find_labels(samples: list[Sample], names: list[str]) -> Labels | None:
    """The classes of the images, or None where the samples have none.

    Args:
        samples: All samples of the dataset.
        names: As given in the configuration; without them, the labels that occur, numbers in the order of their size.

    Raises:
        UserError: Labels that are not among the names; all are listed.
    """
    if not samples or samples[0].label is None:
        return None
    where: dict[str, list[str]] = {}
    for sample in samples:
        for text in sample.label if isinstance(sample.label, tuple) else (sample.label or "",):
            where.setdefault(text, []).append(sample.id)
    if not names:
        names = sorted(where, key=lambda t: (not t.isdecimal(), int(t) if t.isdecimal() else t))
        if not names:
            raise UserError("no image has a label; check the label column, or leave it out")
    codes = {name: number for number, name in enumerate(names)}
    if not set(where) <= set(names) and all(text.isdecimal() for text in where):
        # The raw data has numbers, the configuration their names.
        codes = {text: int(text) for text in where if int(text) < len(names)}
    stray = [f"{text}: {some(ids)}" for text, ids in sorted(where.items()) if text not in codes]
    if stray:
        raise UserError(
            f"labels that are not among the classes {names}:\n{listed(stray, 100)}\n"
            "Correct them, or add them to `classes`."
        )
    return Labels(names, codes)


def some(ids: list[str], most: int = 3) -> str:
    """The first few ids, and how many more there are."""
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")
