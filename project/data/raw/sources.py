"""Sources of samples: image files that pair up by name, arrays, or a user's class."""

import importlib
import inspect
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from project.data.config import DatasetConfig, given_split
from project.data.path_patterns import field_values
from project.data.raw.arrays import array_samples
from project.data.raw.images import FileRef, FunctionImage
from project.data.raw.patterns import (
    FileMatches,
    Pattern,
    check_partners,
    count_suffixes,
    describe_unmatched,
    files_below,
    match_files,
)
from project.data.raw.polygons import SUFFIXES
from project.data.raw.samples import INTEGER_ROLES, ImageRef, Problems, Sample
from project.errors import UserError, bullet_list
from project.yaml_files import named_object

__all__ = ["FileRef", "FunctionImage", "ImageRef", "Problems", "Sample", "Source", "find_source"]


class Source(ABC):
    """Finds the samples of a dataset.

    A user's class is named in the configuration, `source: {class_path: my_data.Pairs, init_args: {...}}`. Tables,
    splits and checks work for its samples as for those of image files.
    """

    channels: Mapping[str, list[str]] = MappingProxyType({})  # role -> names of its channels; by default "0", "1", ...

    @abstractmethod
    def samples(self, problems: Problems) -> Iterable[Sample]:
        """The samples, in any order, each with a unique id and all with the same roles.

        Args:
            problems: `problems.add(id, "what is wrong")` for those that cannot be used. All of them are listed
                together, or left out with `on_error: skip`.
        """


class PatternSource(Source):
    """Image files that pair up by their names: `image`, `target`, `mask` and `instances` of the configuration."""

    def __init__(self, config: DatasetConfig) -> None:
        self.config = config
        self.channels = {role: list(patterns) for role, patterns in config.patterns().items()} | _fixed_channels(config)

    def samples(self, problems: Problems) -> list[Sample]:
        """All samples whose files are complete."""
        config, raw = self.config, Path(self.config.raw)
        if not (names := files_below(raw)):
            raise UserError(f'the raw folder "{raw}" is empty')
        values = field_values(config.all_patterns())
        roles = [role for role, patterns in config.patterns().items() for _ in patterns]
        patterns = [Pattern.parse(text, values=values) for of in config.patterns().values() for text in of.values()]
        all_matches = match_files(patterns, raw, names, problems)
        first = all_matches[0]
        if not first.files:
            example = f'for instance there is "{names[0]}" ({count_suffixes(names)})'
            raise UserError(f'no file below "{raw}" fits "{first.pattern.text}"; {example}')
        _check_splits(first, problems)
        for role, matches in zip(roles, all_matches, strict=True):
            check_partners(first, matches, role, problems)
        used = {file for matches in all_matches for file in matches.files.values()}
        _note_unread_files(names, used, patterns, config, problems)
        for name, options in values.items():
            if name in first.pattern.fields:
                seen = {fields[name] for fields in first.fields.values()}
                problems.warnings += [f'no file has "{o}" for the field {{{name}}}' for o in options if o not in seen]
        complete = set(first.files).intersection(*(matches.files for matches in all_matches))
        by_role = [*zip(roles, all_matches, strict=True)]
        return [self._sample(id_, raw, first.fields[id_], by_role) for id_ in sorted(complete)]

    def _sample(self, id_: str, raw: Path, fields: dict[str, str], by_role: list[tuple[str, FileMatches]]) -> Sample:
        config, group = self.config, ""
        if config.group:
            try:
                group = config.group.format(**fields)
            except (KeyError, IndexError, ValueError, AttributeError) as error:
                raise UserError(f'group: "{config.group}" must be made of the fields {", ".join(fields)}') from error
        images: dict[str, list[ImageRef]] = {}
        for role, matches in by_role:
            convert = config.convert if role == "image" else None
            ref = FileRef(raw / matches.files[id_], config.axes, channel=matches.pattern.channel, convert=convert)
            images.setdefault(role, []).append(ref)
        return Sample(id_, images, group, fields.get("label"), split=given_split(fields.get("split", "")))


class ArraySource(Source):
    """Files with many samples each: `arrays` of the configuration."""

    def __init__(self, config: DatasetConfig) -> None:
        self.config, self.channels = config, _fixed_channels(config)

    def samples(self, problems: Problems) -> list[Sample]:
        """See `project.data.raw.arrays.array_samples`."""
        files = {file.partition(":")[0] for entry in self.config.arrays for file in entry.files().values()}
        _note_unread_files(files_below(Path(self.config.raw)), files, [], self.config, problems)
        return array_samples(self.config, problems)


def _fixed_channels(config: DatasetConfig) -> dict[str, list[str]]:
    """Names of the channels that do not depend on the names of patterns."""
    names = {role: [role] for role in INTEGER_ROLES}
    return names | {"image": ["red", "green", "blue"]} if config.convert == "rgb" else names


def _note_unread_files(
    names: list[str], used: set[str], patterns: list[Pattern], config: DatasetConfig, problems: Problems
) -> None:
    """Note the files that nothing in the configuration names."""
    used |= {path for path in (config.table and config.table.path, config.split.file) if path}
    other = [Pattern.parse(text, values=field_values([text])) for text in config.unlabelled.values()]
    if config.polygons:
        other.append(Pattern.parse(config.polygons.path, SUFFIXES, field_values(config.all_patterns())))
    unread = set(names) - {Path(path).as_posix() for path in used}
    unread = {name for name in unread if not any(pattern.fits(name) for pattern in other)}
    if message := describe_unmatched(unread, patterns, Path(config.raw)):
        problems.notes.append(message)


def _check_splits(first: FileMatches, problems: Problems) -> None:
    unknown = {
        id_: text for id_, fields in first.fields.items() if not given_split(text := fields.get("split", "train"))
    }
    if unknown and not problems.skip:  # by folder: a list of samples would show the first folder only
        lines = [f'"{text}" ({n} files)' for text, n in sorted(Counter(unknown.values()).items())]
        raise UserError(
            f'{{split}} in "{first.pattern.text}" must be train, val or test (or training, valid, validation, '
            f"testing), but is also:\n{bullet_list(lines)}\nWrite {{split:train|val|test}} to leave these out, give "
            "the field another name, or rename these folders."
        )
    for id_, text in unknown.items():
        problems.add(id_, f'the split must be train, val or test, not "{text}"')


def import_object(path: str, key: str) -> Any:
    """What a class path in a data config names; a module in the working directory is found too."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        return named_object(path)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f'{key}: "{path}" cannot be imported: {type(error).__name__}: {error}') from error


def find_source(config: DatasetConfig) -> Source:
    """The source that the configuration names."""
    if config.source is None:
        return ArraySource(config) if config.arrays else PatternSource(config)
    path, arguments = config.source["class_path"], config.source.get("init_args") or {}
    cls = import_object(path, "source")
    if not (inspect.isclass(cls) and issubclass(cls, Source)) or inspect.isabstract(cls):
        raise UserError(f'source: "{path}" is no class derived from {Source.__module__}.Source with a method `samples`')
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as error:
        parameters = ", ".join(inspect.signature(cls).parameters) or "none"
        raise UserError(f"source: the arguments do not fit {path}: {error}; it takes {parameters}") from error
    source: Source = cls(**arguments)
    return source
