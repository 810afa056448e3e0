"""Sources of samples: image files that pair up by name, arrays, or a user's class."""

import importlib
import inspect
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from project.data.config import DatasetConfig, given_split
from project.data.path_patterns import field_values
from project.data.raw.arrays import ArraySource
from project.data.raw.images import FileRef, FunctionImage
from project.data.raw.patterns import (
    FileMatches,
    Pattern,
    channel_names,
    check_partners,
    count_suffixes,
    files_below,
    match_files,
    note_unread_files,
)
from project.data.raw.polygons import SUFFIXES, PolygonRef
from project.data.raw.readers import READERS
from project.data.raw.samples import ImageRef, Problems, Sample, Source
from project.errors import UserError
from project.yaml_files import named_object

__all__ = ["FileRef", "FunctionImage", "ImageRef", "PolygonRef", "Problems", "Sample", "Source", "find_source"]


class PatternSource(Source):
    """Image files that pair up by their names: `image`, `target`, `mask`, `instances` and `polygons`."""

    def __init__(self, config: DatasetConfig) -> None:
        self.config, self.channels = config, channel_names(config)

    def samples(self, problems: Problems) -> list[Sample]:
        """All samples whose files are complete."""
        config, raw = self.config, Path(self.config.raw)
        if not (names := files_below(raw)):
            raise UserError(f'the raw folder "{raw}" is empty')
        values = field_values(config.all_patterns())
        roles, patterns = list[str](), list[Pattern]()
        for role, of_role in config.patterns().items():
            suffixes = SUFFIXES if role == "instances" and config.polygons else READERS
            roles += [role] * len(of_role)
            patterns += [Pattern.parse(text, suffixes, values) for text in of_role.values()]
        all_matches = match_files(patterns, raw, names, problems)
        first = all_matches[0]
        if not first.files:
            example = f'for instance there is "{names[0]}" ({count_suffixes(names)})'
            raise UserError(f'no file below "{raw}" fits "{first.pattern.text}"; {example}')
        by_role = [*zip(roles, all_matches, strict=True)]
        for role, matches in by_role:
            check_partners(first, matches, role, problems)
        used = {file for matches in all_matches for file in matches.files.values()}
        note_unread_files(names, used, patterns, config, problems)
        for id_, fields in first.fields.items():
            if not given_split(text := fields.get("split", "train")):
                hint = "write {split:train|val|test} to leave others out, or call the field otherwise"
                problems.add(id_, f'the split must be train, val or test, not "{text}"; {hint}')
        for name, options in values.items():
            if name in first.pattern.fields:
                seen = {fields[name] for fields in first.fields.values()}
                problems.warnings += [f'no file has "{o}" for the field {{{name}}}' for o in options if o not in seen]
        complete = set(first.files).intersection(*(matches.files for matches in all_matches))
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
            path, convert = raw / matches.files[id_], config.convert if role == "image" else None
            ref: ImageRef = FileRef(path, config.axes, channel=matches.pattern.channel, convert=convert)
            if role == "instances" and config.polygons:
                ref = outlines = PolygonRef(path, images["image"][0])
                if label := config.polygons.label:
                    names = tuple(config.class_names("mask"))
                    images["mask"] = [replace(outlines, label=label, classes=names, ignore_index=config.ignore_index)]
            images.setdefault(role, []).append(ref)
        return Sample(id_, images, group, fields.get("label"), split=given_split(fields.get("split", "")))


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
        raise UserError(f'source: "{path}" is no class derived from {__name__}.Source with a method `samples`')
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as error:
        parameters = ", ".join(inspect.signature(cls).parameters) or "none"
        raise UserError(f"source: the arguments do not fit {path}: {error}; it takes {parameters}") from error
    source: Source = cls(**arguments)
    return source
