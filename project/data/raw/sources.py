"""Where samples come from: image files that pair up by name, arrays, or a class of your own."""

import importlib
import inspect
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from project.data.config import DatasetConfig, given_split
from project.data.path_patterns import field_values
from project.data.raw.arrays import ArrayRef, array_samples
from project.data.raw.images import FileRef, FunctionImage, axis_sizes
from project.data.raw.interpretation import NodataRule
from project.data.raw.labels import describe_doubtful
from project.data.raw.lazy_image import errors_mention
from project.data.raw.patterns import (
    Matches,
    Pattern,
    check_partners,
    describe_suffixes,
    describe_unmatched,
    files_below,
    match_files,
    nfc,
)
from project.data.raw.polygons import GEOJSON, PolygonRef, add_polygons
from project.data.raw.samples import INTEGER_ROLES, ROLES, ImageRef, Problems, Sample
from project.data.raw.tables import apply_split_file, join_table
from project.errors import UserError, bullet_list, did_you_mean

__all__ = ["FileRef", "FunctionImage", "ImageRef", "Problems", "Sample", "Source", "find_samples", "find_source"]


class Source(ABC):
    """Finds the samples of a dataset.

    A class of your own is named in the configuration, `source: {class_path: my_data.Pairs, init_args: {...}}`. Tables,
    splits and checks work for its samples as for those of image files.

    Attributes:
        channels: Role ("image", "target") -> names of its channels; a role that is missing has "0", "1", ...
    """

    channels: Mapping[str, list[str]] = MappingProxyType({})

    @abstractmethod
    def samples(self, problems: Problems) -> Iterable[Sample]:
        """The samples, in any order, each with an id of its own and all with the same roles.

        Args:
            problems: `problems.add(id, "what is wrong")` for those that cannot be used. All of them are listed at
                once, or left out with `on_error: skip`.
        """


class PatternSource(Source):
    """Image files that pair up by their names: `image`, `target`, `mask` and `instances` of the configuration."""

    def __init__(self, config: DatasetConfig) -> None:
        self.config = config
        self.channels = {role: list(patterns) for role, patterns in config.patterns().items()} | _planes(config)

    def samples(self, problems: Problems) -> list[Sample]:
        """All samples whose files are complete.

        Raises:
            UserError: No folder or file, or patterns that cannot work.
        """
        config, raw = self.config, Path(self.config.raw)
        if not (names := files_below(raw)):
            raise UserError(f'the raw folder "{raw}" is empty')
        values = field_values(config.all_patterns())
        found = {
            role: [match_files(Pattern.parse(text, values=values), raw, names, problems) for text in patterns.values()]
            for role, patterns in config.patterns().items()
        }
        first = found["image"][0]
        if not first.files:
            there = f'for instance there is "{names[0]}" ({describe_suffixes(names)})'
            raise UserError(f'no file below "{raw}" fits "{first.pattern.text}"; {there}')
        _check_splits(first, problems)
        for role, matches in found.items():
            for each in matches:
                check_partners(first, each, role, problems)
        problems.raise_or_skip(f'The files below "{raw}" do not pair up:')
        matched = [matches for each in found.values() for matches in each]
        if message := describe_unmatched(_unread(names, matched, config), [m.pattern for m in matched], raw):
            problems.notes.append(message)
        for name, options in values.items():
            if name in first.pattern.fields:
                seen = {fields[name] for fields in first.fields.values()}
                problems.warnings += [f'no file has "{o}" for the field {{{name}}}' for o in options if o not in seen]
        complete = set(first.files).intersection(*(each.files for matches in found.values() for each in matches))
        return [self._sample(id_, raw, first.fields[id_], found) for id_ in sorted(complete)]

    def _sample(self, id_: str, raw: Path, fields: dict[str, str], found: dict[str, list[Matches]]) -> Sample:
        config, group = self.config, ""
        if config.group:
            try:
                group = config.group.format(**fields)
            except (KeyError, IndexError, ValueError, AttributeError) as error:
                raise UserError(f'group: "{config.group}" must be made of the fields {", ".join(fields)}') from error
        images: dict[str, Sequence[ImageRef]] = {
            role: [
                FileRef(
                    raw / each.files[id_],
                    config.axes,
                    channel=each.pattern.channel,
                    convert=config.convert if role == "image" else None,
                )
                for each in matches
            ]
            for role, matches in found.items()
        }
        return Sample(id_, images, group, fields.get("label"), split=given_split(fields.get("split", "")))


def _unread(names: list[str], matched: list[Matches], config: DatasetConfig) -> set[str]:
    """The files that nothing in the configuration names."""
    known = {file for matches in matched for file in matches.files.values()}
    tables = [config.table and config.table.path, config.split.file, config.polygons and config.polygons.path]
    known |= {Path(path).as_posix() for path in tables if path}
    others = [Pattern.parse(text, values=field_values([text])) for text in config.unlabelled.values()]
    if config.polygons and "{" in config.polygons.path:
        others.append(Pattern.parse(config.polygons.path, GEOJSON, field_values(config.all_patterns())))
    return {name for name in names if not any(p.regex.fullmatch(nfc(name)) for p in others)} - known


class ArraySource(Source):
    """Files with many samples each: `arrays` of the configuration."""

    def __init__(self, config: DatasetConfig) -> None:
        self.config, self.channels = config, _planes(config)

    def samples(self, problems: Problems) -> list[Sample]:
        """See `project.data.raw.arrays.array_samples`."""
        samples, raw = array_samples(self.config, problems), Path(self.config.raw)
        named = {
            Path(file.partition(":")[0]).as_posix() for entry in self.config.arrays for file in entry.files().values()
        }
        if message := describe_unmatched(_unread(files_below(raw), [], self.config) - named, [], raw):
            problems.notes.append(message)
        return samples


def _planes(config: DatasetConfig) -> dict[str, list[str]]:
    """Names of the channels that are the same whatever the files are called."""
    return {role: [role] for role in INTEGER_ROLES} | (
        {"image": ["red", "green", "blue"]} if config.convert == "rgb" else {}
    )


def _check_splits(first: Matches, problems: Problems) -> None:
    strange = {
        id_: text for id_, fields in first.fields.items() if not given_split(text := fields.get("split", "train"))
    }
    if strange and not problems.skip:  # by folder: a list of samples would show the first folder only
        told = [f'"{text}" ({n} files)' for text, n in sorted(Counter(strange.values()).items())]
        raise UserError(
            f'{{split}} in "{first.pattern.text}" must be train, val or test (or training, valid, validation, '
            f"testing), but is also:\n{bullet_list(told)}\nWrite {{split:train|val|test}} to leave these out, give the "
            "field another name, or rename these folders."
        )
    for id_, text in strange.items():
        problems.add(id_, f'"{text}" is none of train, val and test')
    problems.raise_or_skip("")


def find_source(config: DatasetConfig) -> Source:
    """The source that the configuration means.

    Raises:
        UserError: There is no such class, it is no `Source`, or its arguments do not fit.
    """
    if config.source is None:
        return ArraySource(config) if config.arrays else PatternSource(config)
    path, arguments = config.source["class_path"], config.source.get("init_args") or {}
    found = _imported(path)
    if not (inspect.isclass(found) and issubclass(found, Source)):
        raise UserError(f'source: "{path}" is not derived from project.data.raw.sources.Source')
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise UserError(f'source: "{path}" needs the method {", ".join(missing)}; see project.data.raw.sources.Source')
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        takes = ", ".join(inspect.signature(found).parameters) or "none"
        raise UserError(f"source: the arguments do not fit {path}: {error}; it takes {takes}") from error
    return found(**arguments)


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    # A module beside the configuration is found even if the command is installed elsewhere.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    if not module:
        raise UserError(f'source: "{path}" must name the module too, as my_data.{path}')
    try:
        content = importlib.import_module(module)
    except Exception as error:
        raise UserError(f'source: "{module}" cannot be imported: {type(error).__name__}: {error}') from error
    if not hasattr(content, name):
        raise UserError(f'source: there is no class "{name}" in {module}.{did_you_mean(name, vars(content))}')
    return getattr(content, name)


def find_samples(config: DatasetConfig, problems: Problems, source: Source | None = None) -> list[Sample]:
    """All samples of a dataset, in the order of their ids, with all that tables, split files and outlines say of them.

    Args:
        config: Of the dataset.
        problems: Gets the samples that cannot be used; where they are skipped, the others are returned.
        source: By default what the configuration says.

    Raises:
        UserError: Samples that cannot be used, all of them listed; a configuration that does not fit the files; or no
            sample is left.
    """
    samples = [_normal(sample) for sample in (source or find_source(config)).samples(problems)]
    problems.raise_or_skip("Some samples cannot be used:")
    for step in (_checked, _with_rules, join_table, apply_split_file, add_polygons, _with_pages):
        samples = _left(samples, problems)
        with problems.deferred():
            samples = step(samples, config, problems)
    groups = Counter(sample.group for sample in samples if sample.group != sample.id)
    problems.warnings += describe_doubtful(groups, "groups")
    return _left(samples, problems)


def _left(samples: list[Sample], problems: Problems) -> list[Sample]:
    if left := problems.without_skipped(samples):
        return left
    if problems.sections:
        raise UserError  # they say all
    told = bullet_list(f"{which}: {what}" for which, what in problems.skipped)
    raise UserError(f"no sample is left, all were skipped:\n{told}" if told else "there is no sample")


def _normal(sample: Sample) -> Sample:
    """The sample with each accented letter as one code, so that it is found in tables."""
    if not isinstance(sample, Sample):
        raise UserError(f"a source gives objects of the class Sample, not {type(sample).__name__}")
    label = tuple(map(nfc, sample.label)) if isinstance(sample.label, tuple) else sample.label and nfc(sample.label)
    return replace(sample, id=nfc(sample.id), group=nfc(sample.group), label=label)


def _checked(samples: list[Sample], config: DatasetConfig, problems: Problems) -> list[Sample]:
    """The samples in the order of their ids; those that differ from the others are noted."""
    for id_ in [sample.id for sample in samples if not sample.id or not _is_text(sample.id)]:
        problems.add(ascii(id_), "the id is empty or no text in UTF-8; rename the file")
    samples = [sample for sample in samples if sample.id and _is_text(sample.id)]
    times = Counter(sample.id for sample in samples)
    roles, _ = Counter(tuple(sample.roles) for sample in samples).most_common(1)[0] if samples else ((), 0)
    for sample in samples:
        if unknown := sorted(set(sample.images) - set(ROLES)):
            raise UserError(f"{sample.id}: unknown role {', '.join(unknown)}; the roles are {', '.join(ROLES)}")
        if "image" not in sample.images:
            problems.add(sample.id, "has no image")
        elif tuple(sample.roles) != roles:
            problems.add(sample.id, f"has {', '.join(sample.roles)}, most have {', '.join(roles)}")
    for id_, n in times.items():
        if n > 1:
            problems.add(id_, f"{n} samples have this id")
    problems.raise_or_skip("Some samples cannot be used:")
    return sorted(problems.without_reported(samples), key=lambda sample: sample.id)


def _is_text(name: str) -> bool:
    """Names of files are bytes; those that are no UTF-8 cannot be written into the prepared files."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_rules(samples: list[Sample], config: DatasetConfig, problems: Problems) -> list[Sample]:
    """The samples with what role and configuration say of values: "no data", and whether they are numbers of things."""
    measured = NodataRule(config.not_finite or 0)
    unlabelled = (
        "set `ignore_index` where they are not annotated, or name the value in `mask_values` where it is a class"
    )
    rules = {
        "image": measured,
        "target": measured,
        "mask": NodataRule(config.ignore_index, unlabelled, tuple(config.mask_values or ()), widen=True),
        "instances": NodataRule(None, "write 0, the background, there", (0,)),
    }
    return [
        replace(
            sample,
            images={
                role: [
                    replace(ref, nodata=rules[role], exact=role in INTEGER_ROLES)
                    if isinstance(ref, FileRef | ArrayRef)
                    else ref
                    for ref in refs
                ]
                for role, refs in sample.images.items()
            },
        )
        for sample in samples
    ]


def _with_pages(samples: list[Sample], config: DatasetConfig, problems: Problems) -> list[Sample]:
    """One sample per page, in the group of the file, where pages are samples; and for every file what its axes are."""
    if config.pages == "channels":
        return samples
    found = []
    for sample in samples:
        try:
            found += _pages(sample, config.pages)
        except UserError as error:
            problems.add(sample.id, str(error))
    problems.raise_or_skip("Some files cannot be used:")
    return found


def _pages(sample: Sample, pages: str | dict[str, str | int]) -> list[Sample]:
    uses = pages if isinstance(pages, dict) else {"page": "samples"}
    sizes: dict[FileRef, dict[str, int]] = {}
    for ref in (ref for refs in sample.images.values() for ref in refs if isinstance(ref, FileRef)):
        with errors_mention(ref):
            sizes[ref] = axis_sizes(ref.path, ref.axes) if isinstance(pages, dict) else {"page": _n_pages(ref)}

    def at(ref: ImageRef, position: int) -> ImageRef:
        if isinstance(ref, PolygonRef):
            return replace(ref, image=at(ref.image, position))
        if not isinstance(ref, FileRef):
            return ref
        if not isinstance(pages, dict):
            return replace(ref, channel=position)
        # A mask may lack axes that the image has.
        chosen = [(axis, position if use == "samples" else use) for axis, use in uses.items() if axis in sizes[ref]]
        return replace(ref, pages=tuple(chosen))

    def images(position: int) -> dict[str, Sequence[ImageRef]]:
        return {role: [at(ref, position) for ref in refs] for role, refs in sample.images.items()}

    spread = next((axis for axis, use in uses.items() if use == "samples"), None)
    if spread is None:
        return [replace(sample, images=images(0))]
    lengths = {ref: each.get(spread, 1) for ref, each in sizes.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"the numbers of pages differ: {', '.join(f'{ref} {n}' for ref, n in lengths.items())}")
    n_pages = next(iter(lengths.values()))
    return [replace(sample, id=f"{sample.id}/{spread}{i:04d}", images=images(i)) for i in range(n_pages)]


def _n_pages(ref: FileRef) -> int:
    file = ref.open()
    if file.has_colours:
        raise UserError(f"its {file.shape[0]} channels are colours and not pages; leave out `pages: samples`")
    return file.shape[0]
