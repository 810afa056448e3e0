"""Streams of image files: those whose names differ only in the values of fields, as all "{day}/phase/{id}.tif"."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from project.data.config import given_split
from project.data.proposal.pixels import Content
from project.data.proposal.words import SERIES, meaning, split_of_folder, words
from project.errors import UserError

Fields = tuple[tuple[str, str], ...]  # (name, value)
Key = tuple[Fields, str]  # fields, id
File = tuple[Fields, PurePosixPath]  # fields of its folders
Cut = tuple[str, str, str]  # what varies before the text of a role, this text, what varies after it
MIN_SHARE = 0.8  # of the names that must pair up, where no word says that they are pairs
MOST_UNKNOWN = 3  # folders beside one with a role in its name that may have a role too


@dataclass(frozen=True)
class Stream:
    """Files of one pattern; text between the fields is constant."""

    folder: str  # with fields, such as "{split}/images/"
    before: str  # of the id in the names
    after: str
    suffix: str  # ".*" where they differ
    files: dict[Key, str]
    content: Content = field(default_factory=Content)

    @property
    def pattern(self) -> str:
        """Such as "{split}/images/{id}_rgb.tif"; without {id} where the folder is the id."""
        core = "{id}" if any(core for _, core in self.files) else ""
        return f"{self.folder}{self.before}{core}{self.after}{self.suffix}"

    def values(self, name: str) -> list[str]:
        """The value of a field for each file, "" where it has none."""
        return [dict(fields).get(name, "") for fields, _ in self.files]

    @property
    def names(self) -> list[str]:
        """All files."""
        return [*self.files.values()]

    @property
    def texts(self) -> list[str]:
        """The constant texts; the end of a name says more than its beginning, and than the folders."""
        texts = [self.after, self.before, *reversed(self.folder.split("/"))]
        return [re.sub(r"\{\w+\}", " ", text).strip(" ") for text in texts]

    @property
    def words(self) -> set[str]:
        """The words of the constant texts."""
        return {*words(" ".join(self.texts))}

    @property
    def role(self) -> str:
        """The role that the names say; that of A and B as in pix2pix."""
        letters = {"A": "image", "B": "target"}
        return next((role for text in self.texts if (role := meaning(text) or letters.get(text.strip("_-"), ""))), "")

    @property
    def name(self) -> str:
        """A short name for a channel."""
        texts = [text for text in self.texts if re.search(r"[^\W\d_]", text)]
        usual = [text for text in texts if meaning(text) or text.strip("_-") in ("A", "B")]
        longer = [text for text in texts if any(len(word) > 1 and word.isalpha() for word in words(text))]
        return re.sub(r"\W+", "_", [*usual, *longer, "image"][0]).strip("_")


def find_streams(names: Iterable[str]) -> list[Stream]:
    """The streams of image files, the largest first, with ids that agree as far as possible.

    Raises:
        UserError: Words are in upper case in some names, and in lower case in others.
    """
    paths = [PurePosixPath(name) for name in names]
    siblings: dict[int, set[str]] = defaultdict(set)  # names of folders by depth
    for path in paths:
        for depth, folder in enumerate(path.parts[:-1]):
            siblings[depth].add(folder)
    parsed = {(depth, name): _folder(name, depth, found) for depth, found in siblings.items() for name in found}
    by_folder: dict[str, list[File]] = defaultdict(list)
    for path in paths:
        parts = [parsed[depth, name] for depth, name in enumerate(path.parts[:-1])]
        fields = tuple(sorted({name: value for _, of_part in parts for name, value in of_part.items()}.items()))
        by_folder["".join(f"{text}/" for text, _ in parts)].append((fields, path))
    streams = [stream for template, files in by_folder.items() for stream in _divide(template, files)]
    spellings: dict[str, tuple[str, Stream]] = {}
    for stream in streams:
        text = f"{stream.folder}{stream.before}{{id}}{stream.after}{stream.suffix}"
        known, other = spellings.setdefault(text.casefold(), (text, stream))
        if known != text:
            names = f"{other.names[0]} and {stream.names[0]}"
            raise UserError(f"names differ in upper and lower case, such as {names}; spell each word in one way.")
    return _paired(sorted(streams, key=lambda stream: (-len(stream.files), stream.pattern)))


def _folder(name: str, depth: int, siblings: set[str]) -> tuple[str, dict[str, str]]:
    """A folder in a pattern, and the values of its fields: "images", "{split}", "{f0}", "{f0}_GT"."""
    before, split, after = split_of_folder(name)
    if name.lower() in ("dev", "eval", "holdout") and any(map(given_split, siblings)):
        raise UserError(f'is the folder "{name}" a validation or a test set? Rename it to val or test.')
    if len(siblings) == 1 or siblings == {"A", "B"}:
        return name, {}
    same = {s for b, s, a in map(split_of_folder, siblings) if (b, a) == (before, after) and s}
    if split and (not before + after or len(same) > 1 or meaning(before + after) or after in ("A", "B")):
        return f"{before}{{split}}{after}", {"split": split}
    for other in siblings - {name}:  # "01_GT" beside "01"
        if re.match(rf"{re.escape(other)}[-_ ]", name) and meaning(name[len(other) :]):
            return f"{{f{depth}}}{name[len(other) :]}", {f"f{depth}": other}
    if all(meaning(other) == "channel" for other in siblings):
        return name, {}
    known = {other for other in siblings if meaning(other) not in ("", "channel")}
    unknown = [other for other in siblings - known if not split_of_folder(other)[1]]
    is_base = any(re.match(rf"{re.escape(a)}[-_ ]", b) for a in unknown for b in siblings - {a})
    if name in known or (known and len(unknown) <= MOST_UNKNOWN and not is_base):
        return name, {}
    return f"{{f{depth}}}", {f"f{depth}": name}


def _divide(folder: str, files: list[File]) -> Iterator[Stream]:
    """The streams of files whose folders have the same template."""
    for cuts in (_tails, _words_inside):
        if texts := _role_texts(files, cuts):
            break
    divided: dict[tuple[str, str], dict[tuple[Fields, str, str], str]] = defaultdict(dict)
    for fields, path in files:
        suffix, options = path.suffix.lower(), sorted(cuts((fields, path)), key=lambda cut: -len(cut[1]))
        head, text, tail = next((c for c in options if (c[1].casefold(), suffix) in texts), (path.stem, "", ""))
        divided[text, suffix][fields, head, tail] = str(path)
    merged: dict[tuple[str, str], dict[tuple[Fields, str, str], str]] = {}
    for (text, suffix), by_key in divided.items():  # files that differ only in the suffix, but do not pair up
        same = next((s for t, s in merged if t == text and not merged[t, s].keys() & by_key.keys()), None)
        merged[text, suffix if same is None else ".*"] = by_key | (merged.pop((text, same)) if same else {})
    for (text, suffix), by_key in merged.items():
        heads = {head for _, head, tail in by_key if tail}
        if not heads or cuts is _tails:
            yield Stream(folder, "", text, suffix, {(f, head): name for (f, head, _), name in by_key.items()})
        elif len(heads) == 1:
            keys = {(f, tail): name for (f, _, tail), name in by_key.items()}
            yield Stream(folder, heads.pop() + text, "", suffix, keys)
        else:
            keys = {((*f, ("p", head)), tail): name for (f, head, tail), name in by_key.items()}
            yield Stream(folder, "{p}" + text, "", suffix, keys)


def _tails(file: File) -> Iterator[Cut]:
    stem = file[1].stem
    is_role = bool(file[0]) and not re.search(r"\d", stem)  # "patient01/image.png"
    positions = [match.start() for match in re.finditer(r"(?<=[^_\-. ])(?=[_\-. ])|(?<=\d)(?=[A-Za-z])", stem)]
    yield from ((stem[:p], stem[p:], "") for p in [0] * is_role + positions + [len(stem)])


def _words_inside(file: File) -> Iterator[Cut]:
    """Cuts at a word with a role at the beginning or in the middle: "phase001", "exp1_phase_001"."""
    if (match := re.fullmatch(r"([^\W\d_]+)(\d.*)", file[1].stem)) and meaning(match[1]):
        yield "", match[1], match[2]
    parts = re.split(r"([_\-. ]+)", file[1].stem)
    for i in (i for i in range(0, len(parts) - 2, 2) if meaning(parts[i])):
        yield "".join(parts[: max(i - 1, 0)]), "".join(parts[max(i - 1, 0) : i + 2]), "".join(parts[i + 2 :])


def _role_texts(files: list[File], cuts: Callable[[File], Iterator[Cut]]) -> set[tuple[str, str]]:
    """(text, suffix) that files of different roles have at the same id; empty where there are none."""
    partners: dict[tuple[Fields, str, str], set[tuple[str, str]]] = defaultdict(set)
    for fields, path in files:
        for head, text, tail in cuts((fields, path)):
            if _may_be_role(text, str(path)) and (head or tail or fields):
                partners[fields, head, tail].add((text.casefold(), path.suffix.lower()))
    counts = Counter(pair for pairs in partners.values() for pair in pairs)
    least = max(2, len(files) // 50) if len(files) >= 4 else 1
    sets = [frozenset(pair for pair in pairs if counts[pair] >= least) for pairs in partners.values()]
    votes = Counter(pairs for pairs in sets if len(pairs) > 1)
    if not votes:
        return set()
    best = {*max(votes, key=lambda s: (votes[s], len(s), -sum(len(text) for text, _ in s), sorted(s)))}
    best |= {pair for pairs in votes for pair in pairs if pairs & best}
    # "_seg000", "_seg001" ... are numbers of frames or objects, no roles; numbers of channels are.
    numbered = Counter(re.sub(r"\d+", "#", text) for text, _ in best)
    channels = {t for t, _ in best if meaning(t) == "channel" and sum(word.isdecimal() for word in words(t)) == 1}
    best = {(text, s) for text, s in best if numbered[re.sub(r"\d+", "#", text)] == 1 or text in channels}
    n_pairs = sum(len(pairs & best) > 1 for pairs in partners.values())
    is_pair = cuts is _tails and n_pairs * len(best) >= MIN_SHARE * len(files)
    return best if len(best) > 1 and (is_pair or any(meaning(text) for text, _ in best)) else set()


def _may_be_role(text: str, name: str) -> bool:
    """Whether a part of a name may say the role: no number, frame ("_t03") or side ("_left"); a channel of nnU-Net."""
    found = words(text)
    if not found or found[0].isdecimal():
        return not text or ("imagesT" in name and meaning(text) == "channel")
    return not (found[0] in SERIES and (len(found) == 1 or found[1].isdecimal()))


def _paired(streams: list[Stream]) -> list[Stream]:
    """The streams with ids that agree, where they do so only without the texts that all names of a stream share."""
    order = ["image", "light", "channel", "stain", "", "target", "annotation"]
    first = min(range(len(streams)), key=lambda i: (order.index(streams[i].role), -len(streams[i].files)))
    bare = [_bare(stream) for stream in streams]
    joined = [bool(streams[first].files.keys() & stream.files.keys()) for stream in streams]
    gained = [bool(bare[first].files.keys() & stream.files.keys()) for stream in bare]
    if sum(gained) <= sum(joined):
        return streams
    return [new if joins else old for new, old, joins in zip(bare, streams, gained, strict=True)]


def _bare(stream: Stream) -> Stream:
    """The stream without what all ids share, a number excepted: "man_seg{id}", "{id}_{split}"."""
    if len(stream.files) < 2:
        return stream
    parsed = [re.findall(r"[^\W\d_]+|\d+|[\W_]+", core) for _, core in stream.files]
    n_head = _n_shared([texts[:-1] for texts in parsed])
    parts = [re.findall(r"[^_\-. ]+|[_\-. ]+", "".join(texts[n_head:]))[::-1] for texts in parsed]
    values = [{value: f"{{{name}}}" for name, value in fields} for fields, _ in stream.files]
    named = [[of.get(text, text) for text in texts[:-1]] for texts, of in zip(parts, values, strict=True)]
    n_tail = _n_shared(named)
    keys = [(f, "".join(texts[n_tail:][::-1])) for (f, _), texts in zip(stream.files, parts, strict=True)]
    files = dict(zip(keys, stream.files.values(), strict=True))
    before, after = "".join(parsed[0][:n_head]), "".join(named[0][:n_tail][::-1])
    return replace(stream, before=stream.before + before, after=after + stream.after, files=files)


def _n_shared(lists: list[list[str]]) -> int:
    """Number of first texts, up to a number, that all lists have in common."""
    same = [len({*texts}) == 1 and not texts[0].isdecimal() for texts in zip(*lists, strict=False)]
    return ([*same, False]).index(False)
