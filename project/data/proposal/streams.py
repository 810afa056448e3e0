"""Streams of image files: those that differ only in the values of fields, as all "{day}/phase/{id}.tif"."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from project.data.config import given_split
from project.data.proposal.words import SERIES, meaning, split_of_folder, words
from project.errors import UserError

Fields = tuple[tuple[str, str], ...]  # (name, value) in the order of the names
Key = tuple[Fields, str]  # fields of the folders, id
MIN_SHARE = 0.8  # of the names that must pair up, where no word says that they are pairs
MOST_UNKNOWN = 3  # folders beside one with a role in its name that may have a role too


@dataclass(frozen=True)
class Stream:
    """Files of one pattern."""

    folder: str  # with fields, such as "{split}/images/"
    before: str  # of the id in the names
    after: str
    suffix: str  # ".*" where they differ
    files: dict[Key, list[str]]
    core: str = "{id}"  # empty where the folder is the id: "{id}/image.png"

    @property
    def pattern(self) -> str:
        """Such as "{split}/images/{id}_rgb.tif"."""
        return f"{self.folder}{self.before}{self.core}{self.after}{self.suffix}"

    def values(self, name: str) -> list[str]:
        """The value of a field for each file, "" where it has none."""
        return [dict(fields).get(name, "") for fields, _ in self.files]

    @property
    def names(self) -> list[str]:
        """All files."""
        return [name for names in self.files.values() for name in names]

    @property
    def text(self) -> str:
        """The constant parts of the pattern, in which words of a role may be."""
        return re.sub(r"\{\w+\}", " ", f"{self.folder} {self.before} {self.after}")

    @property
    def role(self) -> str:
        """The role that the names say: the end of a name says more than its beginning, and than the folders."""
        folders = re.sub(r"\{\w+\}", " ", self.folder)
        return meaning(self.after) or meaning(self.before) or meaning(folders)

    def name(self) -> str:
        """A short name for a channel: what its files have in common."""
        texts = [self.after, self.before, *reversed(re.sub(r"\{\w+\}", "", self.folder).split("/"))]
        usable = [
            t for t in texts if meaning(t) or t in ("A", "B") or any(len(w) > 1 and w.isalpha() for w in words(t))
        ]
        chosen = next((text for text in usable if meaning(text)), usable[0] if usable else "image")
        return re.sub(r"\W+", "_", chosen).strip("_") or "image"


@dataclass(frozen=True)
class _File:
    name: str
    fields: Fields
    stem: str
    suffix: str


def find_streams(names: Iterable[str]) -> list[Stream]:
    """The streams of image files, by the names of files and folders alone; the largest first."""
    by_folder: dict[str, list[_File]] = defaultdict(list)
    paths = [PurePosixPath(name) for name in names]
    siblings: dict[int, set[str]] = defaultdict(set)  # names of folders by depth
    for path in paths:
        for depth, folder in enumerate(path.parts[:-1]):
            siblings[depth].add(folder)
    for path in paths:
        parts = [_folder_part(name, depth, siblings[depth]) for depth, name in enumerate(path.parts[:-1])]
        fields = tuple(sorted({name: value for _, of_part in parts for name, value in of_part.items()}.items()))
        template = "".join(f"{text}/" for text, _ in parts)
        by_folder[template].append(_File(str(path), fields, path.stem, path.suffix.lower()))
    streams = [stream for template, files in by_folder.items() for stream in _divide(template, files)]
    return sorted(streams, key=lambda stream: (-len(stream.files), stream.pattern))


def _folder_part(name: str, depth: int, siblings: set[str]) -> tuple[str, dict[str, str]]:
    """A folder in a pattern, and the values of its fields: "images", "{split}", "{f0}", "{f0}_GT"."""
    split, before, after = split_of_folder(name)
    if name.lower() in ("dev", "eval", "holdout") and any(map(given_split, siblings)):
        raise UserError(f'is the folder "{name}" a validation or a test set? Rename it to val or test.')
    if len(siblings) == 1:
        return name, {}
    if split:
        return f"{before}{{split}}{after}", {"split": split}
    field = f"f{depth}"
    for sibling in siblings:
        if name != sibling and re.match(rf"{re.escape(sibling)}[-_ ]", name) and meaning(name[len(sibling) :]):
            return f"{{{field}}}{name[len(sibling) :]}", {field: sibling}
    known = {other for other in siblings if meaning(other) not in ("", "channel")}
    if siblings == {"A", "B"} or all(meaning(other) == "channel" for other in siblings):
        return name, {}
    unknown = [other for other in siblings - known if not split_of_folder(other)[0]]
    if name in known or (known and len(unknown) <= MOST_UNKNOWN and not any(map(_is_base, unknown, [siblings] * 9))):
        return name, {}
    return f"{{{field}}}", {field: name}


def _is_base(name: str, siblings: set[str]) -> bool:
    """Whether other folders are called the same with an addition, as "01" beside "01_GT"."""
    return any(other != name and re.match(rf"{re.escape(name)}[-_ ]", other) for other in siblings)


def _divide(template: str, files: list[_File]) -> Iterator[Stream]:
    """The streams of files whose folders have the same template."""
    divided: dict[tuple[str, str, str], dict[Key, list[str]]] = defaultdict(dict)
    for at_end in (True, False):
        affixes = _role_affixes(files, at_end)
        if affixes:
            break
    for file in files:
        cuts = sorted(_cuts(file, at_end), key=lambda cut: -len(cut[1]))
        affix = next((text for _, text in cuts if (text, file.suffix) in affixes), "")
        core = file.stem[: len(file.stem) - len(affix)] if at_end else file.stem[len(affix) :]
        group = ("", affix, file.suffix) if at_end else (affix, "", file.suffix)
        divided[group].setdefault((file.fields, core), []).append(file.name)
    merged: dict[tuple[str, str], Stream] = {}
    for (before, after, suffix), by_key in divided.items():
        other = merged.get((before, after))
        if other and not other.files.keys() & by_key.keys():
            merged[before, after] = replace(other, suffix=".*", files=other.files | by_key)
        elif other:
            yield Stream(template, before, after, suffix, by_key)
        else:
            merged[before, after] = Stream(template, before, after, suffix, by_key)
    yield from merged.values()


def _cuts(file: _File, at_end: bool) -> Iterator[tuple[str, str]]:
    """(id, affix) for each position at which a name may be cut; affixes in front have letters only."""
    stem = file.stem
    if at_end:
        positions = [match.start() for match in re.finditer(r"(?<=[^_\-. ])(?=[_\-. ])|(?<=\d)(?=[A-Za-z])", stem)]
        is_role = bool(file.fields) and not any(character.isdecimal() for character in stem)  # "patient01/image.png"
        yield from ((stem[:p], stem[p:]) for p in [0] * is_role + positions + [len(stem)])
    else:
        for match in re.finditer(r"[_\-. ]+|(?<=[A-Za-z])(?=\d)", stem):
            if not any(character.isdecimal() for character in stem[: match.end()]):
                yield stem[match.end() :], stem[: match.end()]


def _role_affixes(files: list[_File], at_end: bool) -> set[tuple[str, str]]:
    """(affix, suffix) that files of different roles have beside the same id; empty where there are none."""
    cuts = {file.name: [cut for cut in _cuts(file, at_end) if _may_be_role(cut[1])] for file in files}
    counts = Counter((affix, file.suffix) for file in files for _, affix in cuts[file.name])
    partners: dict[Key, set[tuple[str, str]]] = defaultdict(set)
    for file in files:
        for core, affix in cuts[file.name]:
            if core or file.fields:
                partners[file.fields, core].add((affix, file.suffix))
    least = max(2, len(files) // 50)
    votes: Counter[frozenset[tuple[str, str]]] = Counter()
    for affixes in partners.values():
        common = frozenset(affix for affix in affixes if counts[affix] >= least or len(files) < 4)
        if len(common) > 1:
            votes[common] += 1
    if not votes:
        return set()
    winner = max(
        votes, key=lambda common: (votes[common], len(common), -sum(len(affix) for affix, _ in common), sorted(common))
    )
    best = set(winner)
    best |= {affix for common in votes for affix in common if common & best}
    # "_seg000", "_seg001" ... are numbers of frames or objects, no roles; numbers of channels are.
    numbered = Counter(re.sub(r"\d+", "#", affix) for affix, _ in best)
    best = {pair for pair in best if numbered[re.sub(r"\d+", "#", pair[0])] == 1 or _is_channel(pair[0])}
    if len(best) < 2:
        return set()
    n_pairs = sum(len(affixes & best) > 1 for affixes in partners.values())
    if any(meaning(affix) for affix, _ in best) or (at_end and n_pairs * len(best) >= MIN_SHARE * len(files)):
        return best
    return set()


def _may_be_role(affix: str) -> bool:
    """Whether the end or beginning of a name may say the role: not a number, as in "_t03"; nnU-Net's "_0000" may."""
    found = words(affix)
    if not found or found[0].isdecimal():
        return not affix or bool(re.fullmatch(r"_000\d", affix))
    return not (found[0] in SERIES and (len(found) == 1 or found[1].isdecimal()))


def _is_channel(affix: str) -> bool:
    n_numbers = sum(word.isdecimal() for word in words(affix))
    return (meaning(affix) == "channel" and n_numbers < 2) or bool(re.fullmatch(r"_000\d", affix))


def paired(streams: list[Stream]) -> list[Stream]:
    """The streams with ids that agree, where they do so only without the texts that all names of a stream share."""
    first = _main(streams)
    if all(stream is first or _overlap(first, stream) for stream in streams):
        return streams
    bare = [_without_common(stream) for stream in streams]
    main = bare[streams.index(first)]
    gained = [bool(_overlap(main, stream)) for stream in bare]
    if sum(gained) <= sum(bool(_overlap(first, stream)) for stream in streams):
        return streams
    partners = [stream for stream, joins in zip(bare, gained, strict=True) if joins]
    return [
        _with_shared(stream, partners) if joins else old
        for stream, joins, old in zip(bare, gained, streams, strict=True)
    ]


def _main(streams: list[Stream]) -> Stream:
    """The stream of the images, by its words; else the largest."""
    order = ["image", "light", "channel", "stain", "", "target", "annotation"]
    return min(streams, key=lambda stream: (order.index(stream.role), -len(stream.files)))


def _overlap(first: Stream, other: Stream) -> int:
    return len(first.files.keys() & other.files.keys())


def _without_common(stream: Stream) -> Stream:
    """The stream whose ids lack what they have in common, or share with a field: "{split}/{id}_{split}_mask"."""
    for _ in range(2):
        cores = [core for _, core in stream.files]
        before, after = _common_start(cores), _common_start([core[::-1] for core in cores])[::-1]
        if len(cores) > 1 and all(len(core) > len(before) + len(after) for core in cores):
            stream = _shortened(stream, before, after, {})
        for name in sorted({name for fields, _ in stream.files for name, _ in fields}):
            if all(re.search(rf"[-_. ]{re.escape(dict(f)[name])}$", core) for f, core in stream.files):
                stream = _shortened(stream, "", f"{{{name}}}", {name: 1})
    return stream


def _shortened(stream: Stream, before: str, after: str, of_field: dict[str, int]) -> Stream:
    """The stream with constant texts, or the value of a field and its separator, moved out of the ids."""
    files = {}
    for (fields, core), names in stream.files.items():
        n = len(after) if not of_field else 1 + len(dict(fields)[next(iter(of_field))])
        separator = core[len(core) - n] if of_field else ""
        files[fields, core[len(before) : len(core) - n]] = names
    after = f"{separator}{after}"
    return replace(stream, before=stream.before + before, after=after + stream.after, files=files)


def _common_prefix(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:n]


def _common_start(texts: Collection[str]) -> str:
    """What all texts begin with, without part of a number or word."""
    start = _common_prefix(list(texts))
    following = {text[len(start) : len(start) + 1] for text in texts}
    while start and any(
        (a.isdecimal() and b.isdecimal()) or (a.isalpha() and b.isalpha()) for a in start[-1] for b in following
    ):
        following, start = {start[-1]}, start[:-1]
    return start


def _whole_words(texts: list[str]) -> str:
    """What all texts begin with, up to their ends or a separator; "" where it has a field."""
    start = _common_prefix(texts)
    while start and any(text[len(start) : len(start) + 1] not in ("", *"_-. ") for text in texts):
        start = start[:-1]
    return "" if "{" in start else start


def _with_shared(stream: Stream, partners: list[Stream]) -> Stream:
    """The stream with the texts around the id that all partners have as parts of the id again."""
    before = _whole_words([partner.before[::-1] for partner in partners])[::-1]
    after = _whole_words([partner.after for partner in partners])
    files = {(fields, f"{before}{core}{after}"): names for (fields, core), names in stream.files.items()}
    n = len(stream.before) - len(before)
    return replace(stream, before=stream.before[:n], after=stream.after[len(after) :], files=files)
