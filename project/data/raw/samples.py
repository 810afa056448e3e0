"""Sample descriptions: id, image references, group, label, split; and the problems that are found on the way."""

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from project.data.raw.lazy_image import LazyImage
from project.errors import UserError, bullet_list

ROLES = ("image", "target", "mask", "instances")
INTEGER_ROLES = ("mask", "instances")
MOST_LINES = 12  # problems of one kind that have a line each
UNWRITTEN = "\nNo split was written."
Window = tuple[int, int, int, int]


class ImageRef(Protocol):
    """Reference to the pixels of one or more channels.

    Small, hashable and picklable: it is sent to the processes that read. `str(ref)` names it in messages.
    """

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that it reads; when they change, what was prepared from them is outdated."""
        ...

    def __hash__(self) -> int: ...

    def open(self) -> LazyImage:
        """Read the header as an image (C, H, W); errors are reported with the sample's id."""
        ...


@dataclass(frozen=True)
class Sample:
    """Description of one sample, without pixels."""

    id: str  # unique
    images: Mapping[str, Sequence[ImageRef]]  # role (one of `ROLES`) -> references to its channels, in order
    group: str = ""  # leakage group: its samples are always in the same split; by default the id
    label: str | tuple[str, ...] | None = None  # class as written; a tuple where images may have several
    values: tuple[float, ...] = ()  # to be predicted
    split: str | None = None  # train, val or test, where it is given
    fold: int | None = None  # number of its fold, where there are folds
    window: Window | None = None  # region (y0, y1, x0, x1) that is used; None for the whole image

    def __post_init__(self) -> None:
        label = tuple(map(nfc, self.label)) if isinstance(self.label, tuple) else self.label and nfc(self.label)
        for name, value in {"id": nfc(self.id), "group": nfc(self.group or self.id), "label": label}.items():
            object.__setattr__(self, name, value)

    @property
    def roles(self) -> list[str]:
        """Its roles, in the order image, target, mask, instances."""
        return [role for role in ROLES if role in self.images]

    @property
    def paths(self) -> list[Path]:
        """The files that it is read from."""
        return [path for refs in self.images.values() for ref in refs for path in ref.paths]


@dataclass
class Problems:
    """Collects the problems of all steps, so that they are reported together."""

    skip: bool = False  # whether samples with problems are left out; else they stop the preparation
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (id or file, reason)
    pending: list[tuple[str, str]] = field(default_factory=list)  # since the last `check`
    errors: list[str] = field(default_factory=list)  # messages about no single sample
    notes: list[str] = field(default_factory=list)  # worth knowing although everything can be used
    warnings: list[str] = field(default_factory=list)  # probably a mistake, or makes scores doubtful

    def add(self, name: str, problem: str) -> None:
        """Add a problem of a sample (its id), or of a file where there is no sample."""
        self.pending.append((name, problem))

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep an error of the step inside for `check`, so that the next step runs too."""
        try:
            yield
        except UserError as error:
            self.errors.append(str(error).removesuffix(UNWRITTEN))

    def check(self) -> None:
        """Raise a `UserError` with all problems so far; those of samples that are skipped move to `skipped`."""
        messages = list(self.errors)
        if self.pending and not self.skip:
            advice = "Correct them, or leave them out with `on_error: skip`."
            messages.insert(0, f"Some samples or files cannot be used:\n{listed_problems(self.pending)}\n{advice}")
        if messages:
            raise UserError("\n".join(messages) + UNWRITTEN)
        self.skipped += self.pending
        self.pending = []

    @property
    def known(self) -> set[str]:
        """Ids and files with problems, skipped or not."""
        return {name for name, _ in self.skipped + self.pending}

    def usable(self, samples: list[Sample]) -> list[Sample]:
        """The samples that have no problem so far."""
        known = self.known
        return [sample for sample in samples if sample.id not in known]


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


def listed_problems(problems: Iterable[tuple[str, str]]) -> str:
    """A line for each problem; many of one kind, which differ by numbers and names, share a line."""
    kinds: dict[str, dict[str, list[str]]] = {}  # kind -> problem -> ids or files
    for name, problem in problems:
        without_name = re.sub(rf"(?<!\w){re.escape(name.partition('@')[0])}(?!\w)", "#", problem)
        kind = re.sub(r'"[^"]*"|-?\d[\d.]*(?:, -?\d[\d.]*)*(?: \.\.\.)?', "#", without_name)
        kinds.setdefault(kind, {}).setdefault(problem, []).append(name)
    lines = []
    for names_of in kinds.values():
        all_names = [name for names in names_of.values() for name in names]
        is_short = len(all_names) <= MOST_LINES
        if not is_short and len(names_of) > MOST_LINES:
            names_of = {next(iter(names_of)): all_names}
        for problem, names in names_of.items():
            text = problem.removeprefix(f"{names[0]}: ")  # it may name a file itself
            start = f"{len(names)} samples or files, such as "
            lines += [f"{name}: {text}" for name in names] if is_short else [f"{start}{names[0]}: {text}"]
    return bullet_list(lines)


def nfc(text: str) -> str:
    """The text with one code for each accented letter: file names from a Mac have two, tables have one."""
    return unicodedata.normalize("NFC", text)


def first_ids(ids: Sequence[str], most: int = 3) -> str:
    """The first few ids, and how many more there are."""
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


def grouped_notes(notes: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each different note of (id, note), with the first id and how many more there are."""
    ids: dict[str, list[str]] = {}
    for id_, note in notes:
        ids.setdefault(note, []).append(id_)
    return [
        f"{min(ids[note])}: {note}" + f" (and {len(ids[note]) - 1} more)" * (len(ids[note]) > 1) for note in sorted(ids)
    ]
