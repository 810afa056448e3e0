"""What a sample is before it is read: its name, where its pixels come from, what is known of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from project.data.raw.lazy_image import LazyImage
from project.errors import UserError, bullet_list

INTEGER_ROLES = ("mask", "instances")
UNWRITTEN = "\nNothing was written."
ROLES = ("image", "target", "mask", "instances")
Window = tuple[int, int, int, int]


class ImageRef(Protocol):
    """Where the pixels of one or more channels come from.

    Small, hashable and picklable: it is sent to the processes that read. `str(ref)` names it in messages.
    """

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files it reads; what was prepared before they changed is not used again."""
        ...

    def __hash__(self) -> int: ...

    def open(self) -> LazyImage:
        """Read the header; whatever this raises is reported with the sample's id."""
        ...


@dataclass(frozen=True)
class Sample:
    """One sample before it is read.

    Attributes:
        id: Unique name.
        images: Role ("image", "target", "mask", "instances") -> where its channels come from, in order.
        group: What it must not be separated from; by default it is a group of its own.
        label: Class as written in the table, the folder's name or the array; several where images may have several.
        values: Numbers to be predicted.
        split: The split it belongs to, if that is given.
        fold: Number of its fold, where there are folds.
        window: Region (y0, y1, x0, x1) to keep, or None for the whole image.
    """

    id: str
    images: Mapping[str, Sequence[ImageRef]]
    group: str = ""
    label: str | tuple[str, ...] | None = None
    values: tuple[float, ...] = ()
    split: str | None = None
    fold: int | None = None
    window: Window | None = None

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.id)

    @property
    def roles(self) -> list[str]:
        """What there is to read, in the order image, target, mask, instances."""
        return [role for role in ROLES if role in self.images]

    @property
    def paths(self) -> list[Path]:
        """The files that it is read from."""
        return [path for refs in self.images.values() for ref in refs for path in ref.paths]


@dataclass
class Problems:
    """Everything that is wrong, said at once instead of one by one.

    Attributes:
        skip: Whether samples with problems are left out in place of stopping.
        skipped: Those left out so far, as (id or file, reason).
        notes: What is worth knowing although everything can be used, one line each.
        warnings: What is probably a mistake, or makes scores doubtful.
        sections: Messages that wait for those of later steps; see `reported_together`.
    """

    skip: bool = False
    skipped: list[tuple[str, str]] = field(default_factory=list)
    pending: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sections: list[str] | None = None
    reported: set[str] = field(default_factory=set)

    def add(self, which: str, what: str) -> None:
        """Note one more.

        Args:
            which: Id of the sample, or the file where there is no sample.
            what: The problem, to be read after the id; it may name the file itself.
        """
        self.pending.append((which, what))

    def raise_or_skip(self, heading: str) -> None:
        """Raise a `UserError` that lists them, or, where they are skipped, move them to `skipped`."""
        if self.pending and not self.skip:
            message = f"{heading}\n{listed_problems(self.pending)}{UNWRITTEN}"
            if self.sections is None:
                raise UserError(message)
            self.sections.append(message)
            self.reported |= {which for which, _ in self.pending}
        else:
            self.skipped += self.pending
        self.pending = []

    @contextmanager
    def reported_together(self) -> Iterator[None]:
        """Let the steps inside go on after samples with problems, and raise what all of them found at the end."""
        self.sections = []
        try:
            with self.deferred():
                yield
            if self.sections:
                message = "\n".join(section.removesuffix(UNWRITTEN) for section in self.sections)
                raise UserError(message + UNWRITTEN)
        finally:
            self.sections = None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Add an error of the step inside to the messages of `reported_together`, so that the next step runs too."""
        try:
            yield
        except UserError as error:
            if self.sections is None:
                raise
            self.sections += [str(error)] if str(error) else []

    @property
    def known(self) -> set[str]:
        """Ids and files that have been reported as problems, skipped or not."""
        return {which for which, _ in self.skipped} | self.reported

    def without_skipped(self, samples: list[Sample]) -> list[Sample]:
        """The samples that are not skipped."""
        gone = {which for which, _ in self.skipped}
        return [sample for sample in samples if sample.id not in gone]

    def without_reported(self, samples: list[Sample]) -> list[Sample]:
        """The samples that have no problem so far."""
        gone = self.known
        return [sample for sample in samples if sample.id not in gone]


def listed_problems(problems: Iterable[tuple[str, str]]) -> str:
    """A line for each; the tiles of one image share a line."""
    ids: dict[tuple[str, str], list[str]] = {}
    for which, what in problems:
        ids.setdefault((which.partition("@")[0], what), []).append(which)
    names = [first_ids(each, most=1) for each in ids.values()]
    # Of a file, the problem may name it already.
    return bullet_list(
        what if what.startswith(f"{name}: ") else f"{name}: {what}" for name, (_, what) in zip(names, ids, strict=True)
    )


def first_ids(ids: Sequence[str], most: int = 3) -> str:
    """The first few ids, and how many more there are."""
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


def grouped_notes(found: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each different note, with the first id that it is about and how many more there are."""
    ids: dict[str, list[str]] = {}
    for which, note in found:
        ids.setdefault(note, []).append(which)
    return [
        f"{min(ids[note])}: {note}" + f" (and {len(ids[note]) - 1} more)" * (len(ids[note]) > 1) for note in sorted(ids)
    ]
