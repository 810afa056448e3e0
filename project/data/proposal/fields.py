"""Fields in the names of files and folders: which is the class, the group, or the id of the image."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from project.data.proposal.draft import unclear
from project.data.proposal.pixels import show_the_same
from project.data.proposal.roles import Roles
from project.data.proposal.streams import Key, Stream
from project.data.proposal.words import LABELS, SIDES, UNSORTED, is_group, words
from project.errors import UserError

MIN_GROUPS = 3  # one for each split
ID_FORMS = {  # beginning, separator, end
    "side": rf"(.*\d)([_\-. ]+)((?:{'|'.join(SIDES)})(?:[_\-. ]*\d+)?)",
    "word": r"([^_]*\d)(_)([A-Za-z]+)",
    "number": r"(.*?)([_\-. ]+\(?[A-Za-z]*)(\d+\)?)",
}


@dataclass
class FieldNames:
    """Names of fields in the patterns, and what they say."""

    names: dict[str, str] = field(default_factory=dict)  # text in a pattern -> new text
    kind: str = ""  # "label" or "group", if there is one
    values: dict[Key, str] = field(default_factory=dict)  # key of a file -> its class or group
    reason: str = ""

    def counts(self, kind: str) -> Counter[str]:
        """Class or group -> number of images; empty if the fields are of another kind."""
        return Counter(self.values.values() if kind == self.kind else ())

    def rename(self, stream: Stream) -> str:
        """The pattern of a stream with the names of the fields."""
        pattern = stream.pattern
        for old, new in self.names.items():
            pattern = pattern.replace(old, new)
        return pattern


def name_fields(raw: Path, roles: Roles, has_truth: bool) -> FieldNames:
    """The fields of the image patterns.

    Raises:
        UserError: A field may be a class or a group, and the choice changes what is learned.
    """
    main = roles.images[0]
    fields = sorted({name for key in main.files for name, _ in key[0]} - {"split"})
    names: dict[str, str] = {}
    if "{id}" not in main.pattern and fields:  # "{id}/image.png"
        names[f"{{{fields.pop()}}}"] = "{id}"
    if not fields:
        return FieldNames(names) if names else _in_ids(main, has_truth)
    values = main.values(fields[0])
    if has_truth or all(map(is_group, values)):
        names |= {f"{{{name}}}": f"{{group{i or ''}}}" for i, name in enumerate(fields)}
        reason = f"{len({*values})} folders such as {values[0]}: images of one stay in one split"
        return FieldNames(names, "group", dict(zip(main.files, values, strict=True)), reason)
    if len(fields) > 1:
        raise unclear(
            f"One of the folders of {main.names[0]} may be the class of the image, `{{label}}`, another a `{{group}}`.",
            {"image": {main.name: main.pattern}},
        )
    _check_classes(raw, main, fields[0])
    reason = f"{len({*values})} class folders: {_counts(values)}"
    names[f"{{{fields[0]}}}"] = "{label}"
    return FieldNames(names, "label", dict(zip(main.files, values, strict=True)), reason)


def _counts(values: Sequence[str]) -> str:
    counts = Counter(values).most_common()
    return ", ".join(f"{name} {n}" for name, n in counts[:8]) + " ..." * (len(counts) > 8)


def _check_classes(raw: Path, main: Stream, name: str) -> None:
    """Refuse folders that may be channels or groups instead of classes."""
    values = main.values(name)
    options = sorted({*values})
    files: dict[str, dict[str, str]] = defaultdict(dict)
    for (fields, core), file in main.files.items():
        files[dict(fields)[name]][f"{[pair for pair in fields if pair[0] != name]} {core}"] = file
    same = 1 < len(options) <= 6 and all(files[value].keys() == files[options[0]].keys() for value in options)
    if same and show_the_same(raw, *([files[value][key] for key in sorted(files[value])] for value in options[:2])):
        raise unclear(
            f"Images of the same name in {', '.join(options)} show the same: they are no classes. Which are the input "
            "(`image:`), which are to be predicted (`target:`)?",
            {value: main.pattern.replace(f"{{{name}}}", value) for value in options},
        )
    lower, stems = {value.lower() for value in options}, {re.sub(r"\d+", "#", value) for value in options}
    # "p1", "p2" ... are classes only if they are called so; n01440764 ... are those of WordNet.
    numbered = len(stems) == 1 and "#" in (stem := min(stems)) and stem != "#" and not {*words(stem)} & LABELS
    is_class = not numbered and not lower <= SIDES and not lower & UNSORTED
    is_class |= all(re.fullmatch(r"n\d{8}", value) for value in options)
    if len(options) < 2 or not is_class or len(options) > len(values) / 2:
        raise unclear(
            f"The folders {', '.join(options[:4])} ... may be classes, or groups such as days or patients: call them "
            "{label} for classes, {group} for groups.",
            {"image": {main.name: main.pattern.replace(f"{{{name}}}", "{group}")}, "group": "{group}"},
        )


def _in_ids(main: Stream, has_truth: bool) -> FieldNames:
    """Class or group in the ids: "cat.12", "12_cat", "mouse3_slice07", "p01_left"; nothing where there is none.

    Raises:
        UserError: A pattern cannot separate the class or the group from the rest.
    """
    cores = [core for _, core in main.files]
    forms = {name: [re.fullmatch(form, core, re.IGNORECASE) for core in cores] for name, form in ID_FORMS.items()}
    form = next((name for name, matches in forms.items() if all(matches)), "")
    if not form or "{id}" not in main.pattern:
        return FieldNames()
    heads, middles, tails = zip(*(match.groups() for match in forms[form] if match), strict=True)
    is_side = form == "side" and len({*tails}) > 1
    values = tails if form == "word" else heads
    numbered = form == "number" and all(re.search(r"\d", value) or is_group(value) for value in values)
    kind = "group" if is_side or numbered else "label"
    if not (is_side or 1 < len({*values}) <= len(values) / 2) or (kind == "label" and has_truth):
        return FieldNames()
    middle = middles[0]
    expressible = {*middles} == {middle} and not any(middle in head for head in heads)
    expressible &= kind == "group" or not {value.lower() for value in values} <= SIDES
    if kind == "group" and not is_side and not (expressible and len({*values}) >= MIN_GROUPS):
        return FieldNames()
    if not expressible:
        raise UserError(
            f"the names of images, such as {main.names[0]}, seem to have a {kind} ({values[0]}), which no pattern can "
            "separate from the rest. Put the images of each into one folder, or write a table "
            f"with the columns `id` and `{kind}`."
        )
    pattern = f"{{id}}{middle}{{label}}" if form == "word" else f"{{{kind}}}{middle}{{id}}"
    reason = f"names begin with {len({*values})} texts such as {values[0]}: images of one stay in one split"
    if kind == "label":
        reason = f"names have {len({*values})} classes: {_counts(values)}"
    return FieldNames({"{id}": pattern}, kind, dict(zip(main.files, values, strict=True)), reason)
