"""Sources of samples: image files that pair up by name, arrays, or a user's class."""

import importlib
import inspect
import re
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from project.data.config import DatasetConfig, given_split
from project.data.path_patterns import field_values
from project.data.raw.arrays import array_samples
from project.data.raw.images import FileRef, FunctionImage
from project.data.raw.patterns import (
    FileMatches,
    Pattern,
    check_partners,
    describe_suffixes,
    describe_unmatched,
    files_below,
    match_files,
)
from project.data.raw.polygons import SUFFIXES
from project.data.raw.samples import INTEGER_ROLES, ImageRef, Problems, Sample
from project.errors import UserError, bullet_list

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
        by_role = {
            role: [match_files(Pattern.parse(text, values=values), raw, names, problems) for text in patterns.values()]
            for role, patterns in config.patterns().items()
        }
        all_matches = [matches for role_matches in by_role.values() for matches in role_matches]
        _keep_most_specific(all_matches)
        first = by_role["image"][0]
        if not first.files:
            example = f'for instance there is "{names[0]}" ({describe_suffixes(names)})'
            raise UserError(f'no file below "{raw}" fits "{first.pattern.text}"; {example}')
        _check_splits(first, problems)
        for role, role_matches in by_role.items():
            for matches in role_matches:
                check_partners(first, matches, role, problems)
        used = {file for matches in all_matches for file in matches.files.values()}
        _note_unread_files(names, used, [matches.pattern for matches in all_matches], config, problems)
        for name, options in values.items():
            if name in first.pattern.fields:
                seen = {fields[name] for fields in first.fields.values()}
                problems.warnings += [f'no file has "{o}" for the field {{{name}}}' for o in options if o not in seen]
        complete = set(first.files).intersection(*(matches.files for matches in all_matches))
        return [self._sample(id_, raw, first.fields[id_], by_role) for id_ in sorted(complete)]

    def _sample(self, id_: str, raw: Path, fields: dict[str, str], by_role: dict[str, list[FileMatches]]) -> Sample:
        config, group = self.config, ""
        if config.group:
            try:
                group = config.group.format(**fields)
            except (KeyError, IndexError, ValueError, AttributeError) as error:
                raise UserError(f'group: "{config.group}" must be made of the fields {", ".join(fields)}') from error
        images: dict[str, Sequence[ImageRef]] = {}
        for role, role_matches in by_role.items():
            convert = config.convert if role == "image" else None
            images[role] = [
                FileRef(raw / matches.files[id_], config.axes, channel=matches.pattern.channel, convert=convert)
                for matches in role_matches
            ]
        return Sample(id_, images, group, fields.get("label"), split=given_split(fields.get("split", "")))


class ArraySource(Source):
    """Files with many samples each: `arrays` of the configuration."""

    def __init__(self, config: DatasetConfig) -> None:
        self.config, self.channels = config, _fixed_channels(config)

    def samples(self, problems: Problems) -> list[Sample]:
        """See `project.data.raw.arrays.array_samples`."""
        raw, entries = Path(self.config.raw), self.config.arrays
        used = {Path(file.partition(":")[0]).as_posix() for entry in entries for file in entry.files().values()}
        samples = array_samples(self.config, problems)
        _note_unread_files(files_below(raw), used, [], self.config, problems)
        return samples


def _fixed_channels(config: DatasetConfig) -> dict[str, list[str]]:
    """Names of the channels that do not depend on the names of patterns."""
    names = {role: [role] for role in INTEGER_ROLES}
    return names | {"image": ["red", "green", "blue"]} if config.convert == "rgb" else names


def _note_unread_files(
    names: list[str], used: set[str], patterns: list[Pattern], config: DatasetConfig, problems: Problems
) -> None:
    """Note the files that nothing in the configuration names."""
    used |= {Path(path).as_posix() for path in (config.table and config.table.path, config.split.file) if path}
    other = [Pattern.parse(text, values=field_values([text])) for text in config.unlabelled.values()]
    if config.polygons:
        other.append(Pattern.parse(config.polygons.path, SUFFIXES, field_values(config.all_patterns())))
    unread = {name for name in names if not any(pattern.fits(name) for pattern in other)} - used
    if message := describe_unmatched(unread, patterns, Path(config.raw)):
        problems.notes.append(message)


def _keep_most_specific(all_matches: list[FileMatches]) -> None:
    """Take files from a pattern that fit one with more constant text too: "a_mask.png" from "{id}.png"."""
    lengths = [len(re.sub(r"\{[^{}]*\}|\*|\[\d+\]$", "", matches.pattern.text)) for matches in all_matches]
    longest: dict[str, int] = {}
    for length, matches in zip(lengths, all_matches, strict=True):
        longest |= {file: max(length, longest.get(file, 0)) for file in matches.files.values()}
    for length, matches in zip(lengths, all_matches, strict=True):
        matches.files = {id_: file for id_, file in matches.files.items() if longest[file] == length}


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


def find_source(config: DatasetConfig) -> Source:
    """The source that the configuration names."""
    if config.source is None:
        return ArraySource(config) if config.arrays else PatternSource(config)
    path, arguments = config.source["class_path"], config.source.get("init_args") or {}
    module_name, _, name = path.rpartition(".")
    # A module beside the configuration is found even if the command is installed elsewhere.
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        raise UserError(f'source: "{path}" cannot be imported: {type(error).__name__}: {error}') from error
    if not (inspect.isclass(cls) and issubclass(cls, Source)) or inspect.isabstract(cls):
        raise UserError(f'source: "{path}" is no class derived from {Source.__module__}.Source with a method `samples`')
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as error:
        parameters = ", ".join(inspect.signature(cls).parameters) or "none"
        raise UserError(f"source: the arguments do not fit {path}: {error}; it takes {parameters}") from error
    return cls(**arguments)
