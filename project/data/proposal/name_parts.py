"""Fields in the names of files and folders: which is the class, the group, the split, or the id of the image."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from project.data.proposal.content import first_page, open_quietly
from project.data.proposal.proposal import ambiguous
from project.data.proposal.roles import Roles
from project.data.proposal.streams import Stream
from project.data.proposal.tables import LABELS, TableColumns
from project.data.proposal.words import GROUPS, meaning, names_group, words
from project.errors import UserError

MIN_GROUPS = 3  # one for each split
PAIRED = 0.2  # by which images of one name correlate more than others where folders are channels of one image


@dataclass
class NameParts:
    """Names of fields in the patterns, and what they say."""

    names: dict[str, str] = field(default_factory=dict)  # text in a pattern -> new text
    labels: Counter[str] = field(default_factory=Counter)  # class -> number of images
    groups: Counter[str] = field(default_factory=Counter)  # group -> number of images
    reason: str = ""

    def rename(self, pattern: str) -> str:
        """The pattern with the names of the fields."""
        for old, new in self.names.items():
            pattern = pattern.replace(old, new)
        return pattern


def find_name_parts(raw: Path, roles: Roles, table: TableColumns | None) -> NameParts:
    """The fields of the image patterns.

    Raises:
        UserError: A field may be a class or a group, and the choice changes what is learned.
    """
    main = roles.images[0]
    fields = sorted({name for key in main.files for name, _ in key[0]} - {"split"})
    has_labels = bool(table and {"label", "values"} & table.keys.keys())
    has_truth = has_labels or bool(roles.targets or roles.mask or roles.instances)
    if not fields:
        return _parts_of_ids(main, has_truth)
    values = main.values(fields[0])
    others = {f"{{{name}}}": "{" + (f"group{i}" if has_truth else f"part{i}") + "}" for i, name in enumerate(fields)}
    if has_truth or _are_groups({*values}):
        names = others | {f"{{{fields[0]}}}": "{group}"}
        reason = f"{len({*values})} folders such as {values[0]}: images of one stay in one split"
        return NameParts(names, groups=Counter(values), reason=reason)
    pattern = main.pattern
    if len(fields) > 1:
        choices = {f"{{{name}}}": _choice(pattern, name, "label") for name in fields}
        raise ambiguous(
            "One of the folders may be the class of the image.",
            {f"class: folders such as {main.values(k[1:-1])[0]}": {"image": v} for k, v in choices.items()},
        )
    name = fields[0]
    if _are_channels(raw, main, name):
        raise ambiguous(
            f"Images of the same name in {', '.join(sorted({*values})[:4])} show the same: they are no classes.",
            {
                f"predict the others from {value}": {
                    "image": {value: pattern.replace(f"{{{name}}}", value)},
                    "target": {v: pattern.replace(f"{{{name}}}", v) for v in sorted({*values}) if v != value},
                }
                for value in sorted({*values})[:4]
            },
        )
    if not _are_classes({*values}) or len({*values}) > len(values) / 2:
        raise ambiguous(
            f"The folders {', '.join(sorted({*values})[:4])} ... may be classes, or groups such as days or patients.",
            {
                "they are classes, to be predicted": {"image": _choice(pattern, name, "label")},
                "they are groups": {"image": _choice(pattern, name, "group"), "group": "{group}"},
            },
        )
    reason = f"{len({*values})} class folders: {_counts(values)}"
    return NameParts({f"{{{name}}}": "{label}"}, labels=Counter(values), reason=reason)


def _choice(pattern: str, name: str, new: str) -> dict[str, str]:
    return {"image": pattern.replace(f"{{{name}}}", f"{{{new}}}")}


def _counts(values: list[str]) -> str:
    counts = Counter(values).most_common()
    return ", ".join(f"{name} {n}" for name, n in counts[:8]) + " ..." * (len(counts) > 8)


def _are_groups(names: set[str]) -> bool:
    """Whether folders are called as days, patients, plates ... or dates."""
    return all({*words(name)} & GROUPS or re.fullmatch(r"(19|20)\d\d[-_.]?\d\d[-_.]?\d\d.*", name) for name in names)


def _are_classes(names: set[str]) -> bool:
    """Whether folders may be called as classes: words, class numbers, or ids of WordNet; not "ds1", "ds2"."""
    stems = {re.sub(r"\d+", "#", name) for name in names}
    is_series = len(stems) == 1 and "#" in (stem := next(iter(stems))) and stem != "#" and not {*words(stem)} & LABELS
    return not is_series or all(re.fullmatch(r"n\d{8}", name) for name in names)


def _are_channels(raw: Path, main: Stream, name: str) -> bool:
    """Whether images of one name in different folders show the same field, by the size of their gradients."""
    folders: dict[str, dict[object, str]] = defaultdict(dict)
    for (fields, core), names in main.files.items():
        rest = tuple(pair for pair in fields if pair[0] != name)
        folders[dict(fields)[name]][rest, core] = names[0]
    first, *others = list(folders.values())
    if not others or len(folders) > 6 or any(first.keys() != other.keys() for other in others) or len(first) < 3:
        return False
    keys = sorted(first, key=str)[:8]
    a, b = ([_gradients(raw / folder[key]) for key in keys] for folder in (first, others[0]))
    same = np.mean([_correlation(x, y) for x, y in zip(a, b, strict=True)])
    different = np.mean([_correlation(x, y) for x, y in zip(a, b[1:] + b[:1], strict=True)])
    return bool(same > different + PAIRED)


def _gradients(path: Path) -> np.ndarray | None:
    """(32, 32) mean size of the gradients of an image."""
    header = open_quietly(path)
    pixels = None if header is None else first_page(header)
    if pixels is None or min(pixels.shape[1:]) < 8:
        return None
    size = np.hypot(*np.gradient(pixels.mean(axis=0, dtype=np.float64)))
    n = min(32, *size.shape)
    rows, columns = (np.linspace(0, length, n, endpoint=False).astype(int) for length in size.shape)
    return np.add.reduceat(np.add.reduceat(size, rows, axis=0), columns, axis=1)


def _correlation(x: np.ndarray | None, y: np.ndarray | None) -> float:
    if x is None or y is None or x.shape != y.shape:
        return 0.0
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1]) if x.std() and y.std() else 0.0


def _parts_of_ids(main: Stream, has_truth: bool) -> NameParts:
    """Class or group in the ids: "cat.12", "12_cat", "mouse3_slice07"; nothing where there is none."""
    cores = [core for _, core in main.files]
    ends = [match[1] for core in cores if (match := re.fullmatch(r"[^_]*\d_([A-Za-z]+)", core))]
    if len(ends) == len(cores) and 1 < len({*ends}) <= len(ends) / 2 and not has_truth and "{id}" in main.core:
        reason = f"names end with {len({*ends})} classes: {_counts(ends)}"
        return NameParts({"{id}": "{id}_{label}"}, labels=Counter(ends), reason=reason)
    matches = [re.fullmatch(r"(.*?)([_\-. ]+[A-Za-z]*)(\d+)", core) for core in cores]
    if "{id}" not in main.core or not all(matches) or not cores:
        return NameParts()
    heads = [match[1] for match in matches if match]
    middles = {match[2] for match in matches if match}
    counts = Counter(heads)
    if len(counts) < 2 or len(counts) > len(cores) / 2:
        return NameParts()
    expressible = len(middles) == 1 and not any((middle := next(iter(middles))) in head for head in heads)
    if names_group({*heads}):
        if not expressible or len(counts) < MIN_GROUPS:
            return NameParts()
        reason = f"names begin with {len(counts)} different texts such as {heads[0]}: images of one stay in one split"
        return NameParts({"{id}": f"{{group}}{middle}{{id}}"}, groups=counts, reason=reason)
    if has_truth:
        return NameParts()
    if not expressible:
        raise UserError(
            f"the names of images seem to begin with a class ({', '.join(sorted(counts)[:4])}), which a pattern cannot "
            "separate from the number. Put the images of each class into one folder, or write a table with the columns "
            "`id` and `label`."
        )
    reason = f"names begin with {len(counts)} classes: {_counts(heads)}"
    return NameParts({"{id}": f"{{label}}{middle}{{id}}"}, labels=counts, reason=reason)


def with_folder_ids(streams: list[Stream]) -> list[Stream]:
    """The streams with the folder of each image as its id, where it holds a single one: "{id}/image.png".

    Raises:
        UserError: Beside such images are several masks for each.
    """
    for name in sorted({name for stream in streams for fields, _ in stream.files for name, _ in fields} - {"split"}):
        inside = [stream for stream in streams if f"{{{name}}}" in stream.folder]
        singles = [s for s in inside if len({*s.values(name)}) == len(s.files) > 1]
        if not singles or any(core not in ("", dict(f)[name]) for s in singles for f, core in s.files):
            continue
        return [_with_folder_id(stream, name) if stream in inside else stream for stream in streams]
    return streams


def _with_folder_id(stream: Stream, name: str) -> Stream:
    files: dict = defaultdict(list)
    cores = {core for _, core in stream.files}
    for (fields, _), found in stream.files.items():
        files[tuple(pair for pair in fields if pair[0] != name), dict(fields)[name]] += found
    if any(len(found) > 1 for found in files.values()):
        raise UserError(
            f'"{stream.folder}" has several files for each image, such as {stream.names[0]}: masks of single objects '
            "are not read. Join those of an image into one image of object numbers (`numbers[mask > 0] = i`), and save "
            "it as TIFF or PNG."
        )
    folder = stream.folder.replace(f"{{{name}}}", "{id}")
    return replace(stream, folder=folder, files=dict(files), core="" if cores == {""} else "{id}")


def check_names(roles: Roles) -> None:
    """Refuse images of which only some are called mask, target ...: their names are not understood."""
    for stream in roles.images:
        counts = Counter(meaning(core) in ("annotation", "target", "stain") for _, core in stream.files)
        if len(counts) > 1:
            example = next(names[0] for (_, core), names in stream.files.items() if meaning(core))
            raise UserError(
                f'some files of "{stream.pattern}" are called as masks or targets, such as {example}, but do not pair '
                "up with the others. Use one form for all names, as a01_phase.tif and a01_mask.tif."
            )
