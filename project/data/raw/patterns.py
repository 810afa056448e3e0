"""Path patterns such as "{day}/phase/{id}.tif", and the files that fit them."""

import functools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from project.data.config import DatasetConfig
from project.data.path_patterns import RANGE, field_names, field_values
from project.data.raw.microscopes import ZARR
from project.data.raw.readers import READERS
from project.data.raw.samples import INTEGER_ROLES, Problems, nfc
from project.errors import UserError


@dataclass(frozen=True)
class Pattern:
    """A path pattern such as "{day}/phase/{id}.tif", "{split:train|val}/{id}.png" or "stacks/{id}.tif[1]"."""

    text: str
    fields: tuple[str, ...]  # in the order in which their values make the id: by name, `id` last
    regex: re.Pattern[str]
    channel: int | None
    suffix: str

    @classmethod
    def parse(
        cls,
        text: str,
        suffixes: Collection[str] = READERS,
        values: Mapping[str, Iterable[str]] = MappingProxyType({}),
    ) -> "Pattern":
        """Compile a pattern of the configuration. The case of the suffix does not matter: .tif matches .TIF.

        `suffixes` can be read; `values` are those that fields are restricted to, see `field_values`.
        """
        path, index = re.fullmatch(r"(.*?)(?:\[(\d+)\])?", nfc(text), re.DOTALL).groups()  # type: ignore[union-attr]
        if several := RANGE.search(path):
            raise UserError(f'"{several[0]}" in "{text}" makes channels, which only `image` and `target` have')
        fields = tuple(sorted({*field_names(path)}, key=lambda name: (name == "id", name)))
        if "id" not in fields:
            raise UserError(f'the pattern "{text}" needs an {{id}}, for instance "images/{{id}}{min(suffixes)}"')
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise UserError(f'the pattern "{text}" must be a path below the raw folder')
        if Path(path).suffix.lower() not in suffixes and not path.endswith("*"):
            raise UserError(f'the pattern "{text}" must end in one of {", ".join(sorted(suffixes))}')
        suffix, regex = Path("x" + re.split(r"[}*]", path)[-1]).suffix, ""
        for part in re.split(r"(\{[^\W\d]\w*(?::[^{}]*)?\}|\*)", path.removesuffix(suffix)):
            if part == "*":
                regex += "[^/]*"
            elif field_names(part):
                (name,) = field_names(part)
                options = "|".join(map(re.escape, values.get(name, ()))) or "[^/]+?"
                regex += f"(?P={name})" if f"(?P<{name}>" in regex else f"(?P<{name}>{options})"
            else:
                regex += re.escape(part)
        regex += f"(?i:{re.escape(suffix)})"
        if path.endswith("*"):  # not the table beside the images
            regex = rf"(?=.*(?i:{'|'.join(map(re.escape, sorted(suffixes)))})\Z){regex}"
        return cls(text, fields, re.compile(regex, re.DOTALL), int(index) if index else None, suffix)

    @functools.cached_property
    def n_constant(self) -> int:
        """Number of constant characters."""
        return len(re.sub(r"\{[^{}]*\}|\*|\[\d+\]$", "", self.text))

    def fits(self, name: str) -> re.Match[str] | None:
        """The match of a file's path relative to the raw folder."""
        return self.regex.fullmatch(nfc(name))


@dataclass
class FileMatches:
    """The files that fit one pattern."""

    pattern: Pattern
    files: dict[str, str] = field(default_factory=dict)  # id -> file below the raw folder, as the disk spells it
    fields: dict[str, dict[str, str]] = field(default_factory=dict)  # id -> the text of each field


def match_files(patterns: Iterable[Pattern], raw: Path, names: list[str], problems: Problems) -> list[FileMatches]:
    """The files among `names`, paths below `raw`, that fit each pattern; two for one id are a problem.

    Of several, a file belongs to those with the most constant text: "a_mask.png" to "{id}_mask.png", not to "{id}.png".
    """
    all_matches = [FileMatches(pattern) for pattern in patterns]
    for name in names:
        fits = [(matches, match) for matches in all_matches if (match := matches.pattern.fits(name))]
        most = max((matches.pattern.n_constant for matches, _ in fits), default=0)
        for matches, match in fits:
            if matches.pattern.n_constant < most:
                continue
            id_ = "/".join(match[field] for field in matches.pattern.fields)
            if id_ in matches.files:
                problems.add(id_, f"found twice, {matches.files[id_]} and {name}")
            elif not ((raw / name).is_file() or (raw / name).is_dir()):  # a pipe would wait for ever
                problems.add(id_, f"{name} is no file, or a link that leads to none")
            matches.files[id_], matches.fields[id_] = name, match.groupdict()
    return all_matches


def check_partners(first: FileMatches, other: FileMatches, role: str, problems: Problems) -> None:
    """Report the ids that only one of the two patterns has."""
    if set(first.pattern.fields) != set(other.pattern.fields):
        texts = f'"{other.pattern.text}" and "{first.pattern.text}"'
        raise UserError(f"{texts} must have the same fields, or files cannot be paired")
    for id_ in sorted(first.files.keys() - other.files.keys()):
        problems.add(id_, f'no {role} file for "{other.pattern.text}"')
    for id_ in sorted(other.files.keys() - first.files.keys()):
        problems.add(id_, f'{other.files[id_]} has no partner for "{first.pattern.text}"')


def channel_names(config: DatasetConfig) -> dict[str, list[str]]:
    """Role -> names of its channels, as far as the configuration says."""
    names = {role: list(patterns) for role, patterns in config.patterns().items()}
    names |= {role: [role] for role in INTEGER_ROLES}
    return names | {"image": ["red", "green", "blue"]} if config.convert == "rgb" else names


def note_unread_files(
    names: list[str], used: set[str], patterns: list[Pattern], config: DatasetConfig, problems: Problems
) -> None:
    """Note the files that nothing in the configuration names."""
    named = {Path(path).as_posix() for path in (config.table and config.table.path, config.split.file) if path}
    other = [Pattern.parse(text, values=field_values([text])) for text in config.unlabelled.values()]
    unread = {name for name in set(names) - used - named if not any(pattern.fits(name) for pattern in other)}
    if message := describe_unmatched(unread, patterns, Path(config.raw)):
        problems.notes.append(message)


def describe_unmatched(names: Iterable[str], patterns: Iterable[Pattern], raw: Path) -> str:
    """One line about the files that no pattern fits: number, suffixes, an example; "" where there are none."""
    if not (names := sorted(names)):
        return ""
    fit = "1 file fits no pattern and is" if len(names) == 1 else f"{len(names)} files fit no pattern and are"
    message = f'below "{raw}" {fit} not read ({count_suffixes(names)}), such as "{names[0]}"'
    for pattern in patterns:
        for name in (name for name in names if Path(name).suffix.lower() in READERS):
            if pattern.fits(Path(name).with_suffix(pattern.suffix).as_posix()):
                wider = re.sub(rf"{re.escape(pattern.suffix)}(\[\d+\])?$", r".*\1", pattern.text)
                return f'{message}; "{name}" differs from "{pattern.text}" only in the suffix: "{wider}" fits both'
    return message


def files_below(raw: Path) -> list[str]:
    """All files in a folder and its sub-folders, linked ones too, as sorted paths relative to it.

    A Zarr folder is one file. Hidden files and folders are left out. A link to a folder that contains it is not
    followed.
    """
    if not raw.is_dir():
        raise UserError(f'the raw folder "{raw}" does not exist; put your files there or set `raw` to where they are')

    def fail(error: OSError) -> None:
        raise UserError(f'the folder "{error.filename}" cannot be read: {error.strerror or error}') from error

    files: list[str] = []
    for top, folders, names in os.walk(raw, onerror=fail, followlinks=True):
        folder = Path(top)
        folders[:] = [name for name in folders if not name.startswith(".")]
        images = [name for name in folders if name.lower().endswith(ZARR)]
        # A link to one of the folders that contain it is a loop.
        parents = {parent.resolve() for parent in (folder, *folder.absolute().parents)} if folders else set()
        folders[:] = [name for name in folders if name not in images and (folder / name).resolve() not in parents]
        files += [(folder / name).relative_to(raw).as_posix() for name in (*names, *images) if not name.startswith(".")]
    return sorted(files)


def count_suffixes(names: Iterable[str]) -> str:
    """Numbers of files by suffix for messages, such as "2 .tiff, 1 .tif"."""
    suffixes = Counter(Path(name).suffix or "without suffix" for name in names)
    return ", ".join(f"{n} {suffix}" for suffix, n in suffixes.most_common(6)) or "no files"
