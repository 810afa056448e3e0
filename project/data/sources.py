"""Find the raw files of each sample by their names, and read them."""

import csv
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from project.data.config import DatasetConfig, TableConfig
from project.data.images import SUFFIXES, ImageFile, naming, open_image
from project.errors import UserError, listed, nearest

Reader = Callable[[], np.ndarray]
Opener = Callable[[Path, str | None], ImageFile]
INTEGER_ROLES = ("mask", "instances")


@dataclass(frozen=True)
class Sample:
    """One sample before it is read.

    Attributes:
        id: Unique name; the fields of the pattern, joined by "/".
        group: What it must not be separated from.
        files: Role -> [(path, channel or None)] in channel order.
        label: Class as written in the table.
        page: Which page, where pages are samples.
        window: Region (y0, y1, x0, x1) to keep, or None for the whole image.
    """

    id: str
    group: str
    files: dict[str, list[tuple[Path, int | None]]]
    label: str | None = None
    page: int | None = None
    window: tuple[int, int, int, int] | None = None


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
    rows = _read_table(raw, config.table, list(first.files), problems) if config.table else {}
    problems.stop_if_any("The table does not fit the images:")
    return [_sample(id_, raw, first, found, rows.get(id_, {}), config) for id_ in sorted(first.files)]


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


def _read_table(raw: Path, table: TableConfig, ids: list[str], problems: Problems) -> dict[str, dict[str, str]]:
    path = raw / table.path
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
        for column in (table.label, table.group):
            if column and not rows[id_][column]:
                problems.add(f'{id_}: the "{column}" is empty')
    return rows


def _sample(
    id_: str,
    raw: Path,
    first: _Matches,
    found: dict[str, list[_Matches]],
    row: dict[str, str],
    config: DatasetConfig,
) -> Sample:
    group = id_
    if config.group:
        try:
            group = config.group.format(**first.fields[id_])
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            known = ", ".join(first.pattern.fields)
            raise UserError(f'group: "{config.group}" must be made of the fields {known}') from error
    elif config.table and config.table.group:
        group = row[config.table.group]
    files = {role: [(raw / m.files[id_], m.pattern.channel) for m in matches] for role, matches in found.items()}
    label = row[config.table.label] if config.table and config.table.label else None
    return Sample(id_, group, files, label)


def read_role(sample: Sample, role: str, axes: str | None, opened: Opener = open_image) -> np.ndarray:
    """The pixels of one role of a sample, whole or in its window.

    Args:
        sample: Which one.
        role: "image", "target", "mask" or "instances".
        axes: See `open_image`.
        opened: Opens a file; one that remembers the last files spares decoding a stack anew for each of its pages.

    Returns:
        (C, H, W) for image and target; (H, W) uint8 or uint16 for mask and instances.

    Raises:
        UserError: The files cannot be read or do not fit each other; the message names the file.
    """
    planes = []
    for path, channel in sample.files[role]:
        with naming(path):
            planes.append(pick(opened(path, axes), channel, sample.page)[1]())
    y0, y1, x0, x1 = sample.window or (0, *planes[0].shape[1:2], 0, planes[0].shape[2])
    array = np.concatenate([plane[:, y0:y1, x0:x1] for plane in planes])
    return _as_integers(array, sample, role) if role in INTEGER_ROLES else array


def pick(file: ImageFile, channel: int | None, page: int | None) -> tuple[tuple[int, int, int], Reader]:
    """Shape of, and reader for, the channels of a file that a sample takes."""
    index = page if page is not None else channel
    if index is None:
        return file.shape, file.read
    if index >= file.shape[0]:
        raise UserError(f"there is no {'channel' if page is None else 'page'} {index}: the file has {file.shape[0]}")
    return (1, *file.shape[1:]), lambda: file.read()[index : index + 1]


def _as_integers(array: np.ndarray, sample: Sample, role: str) -> np.ndarray:
    path = sample.files[role][0][0]
    if len(array) != 1:
        raise UserError(f"{path}: a {role} image has one channel, this has {len(array)}; save it as grey or palette")
    if array.dtype == np.float32:
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 65535 and (array % 1 == 0).all()):
            raise UserError(f"{path}: a {role} image holds whole numbers from 0 to 65535, this does not")
        array = array.astype(np.uint16)
    return array[0]
