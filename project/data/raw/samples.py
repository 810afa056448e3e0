"""What a sample is before it is read: its name, where its pixels come from, what is known of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from project.data.raw.images import ImageFile, naming
from project.errors import UserError, bullet_list

INTEGER_ROLES = ("mask", "instances")
EXACT_IN_FLOAT64 = 2**53
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

    def open(self) -> ImageFile:
        """Read the header; whatever this raises is reported with the sample's id."""
        ...


class Loaded:
    """An image that a function gives: the way for files that nothing here reads.

    Args:
        function: At the top level of a module, so that processes can find it. It returns uint8, uint16, float32 (or
            what converts to these exactly) of shape (H, W) or (C, H, W), always of the same shape and dtype.
        *arguments: Of the function. Paths among them are the files that it reads.
    """

    def __init__(self, function: Callable[..., np.ndarray], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths among the arguments."""
        return tuple(a for a in self.arguments if isinstance(a, Path))

    def open(self) -> ImageFile:
        """Call the function; it is called again, where needed, to read."""
        return ImageFile.of(lambda: self.function(*self.arguments))

    def __str__(self) -> str:
        return f"{self.function.__name__}({', '.join(map(str, self.arguments))})"

    def __repr__(self) -> str:
        # The same in every process: it tells whether what was prepared can be used again.
        return f"{self.function.__module__}.{self.function.__qualname__}{self.arguments!r}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loaded) and (self.function, self.arguments) == (other.function, other.arguments)

    def __hash__(self) -> int:
        return hash((self.function, self.arguments))


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
        sections: Messages that wait for those of later steps; see `collected`.
    """

    skip: bool = False
    skipped: list[tuple[str, str]] = field(default_factory=list)
    found: list[tuple[str, str]] = field(default_factory=list)
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
        self.found.append((which, what))

    def stop_if_any(self, heading: str) -> None:
        """Raise a `UserError` that lists them, or, where they are skipped, move them to `skipped`."""
        if self.found and not self.skip:
            message = f"{heading}\n{listed_problems(self.found)}{UNWRITTEN}"
            if self.sections is None:
                raise UserError(message)
            self.sections.append(message)
            self.reported |= {which for which, _ in self.found}
        else:
            self.skipped += self.found
        self.found = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Let the steps inside go on after samples with problems, and raise what all of them found at the end."""
        self.sections = []
        try:
            with self.gathered():
                yield
            if self.sections:
                message = "\n".join(section.removesuffix(UNWRITTEN) for section in self.sections)
                raise UserError(message + UNWRITTEN)
        finally:
            self.sections = None

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Make an error of the step inside one of the messages of `collected`, so that the next step is made too."""
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

    def without_problems(self, samples: list[Sample]) -> list[Sample]:
        """The samples that have no problem so far."""
        gone = self.known
        return [sample for sample in samples if sample.id not in gone]


def listed_problems(problems: Iterable[tuple[str, str]]) -> str:
    """A line for each; the tiles of one image share a line."""
    ids: dict[tuple[str, str], list[str]] = {}
    for which, what in problems:
        ids.setdefault((which.partition("@")[0], what), []).append(which)
    names = [some(each, most=1) for each in ids.values()]
    # Of a file, the problem may name it already.
    return bullet_list(
        what if what.startswith(f"{name}: ") else f"{name}: {what}" for name, (_, what) in zip(names, ids, strict=True)
    )


def some(ids: Sequence[str], most: int = 3) -> str:
    """The first few ids, and how many more there are."""
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


def open_role(sample: Sample, role: str, opened: Callable[[ImageRef], ImageFile]) -> list[ImageFile]:
    """What makes up one role of a sample, in the order of the channels, opened but not read.

    Raises:
        UserError: A file cannot be opened, or its values do not mean what the role needs; the message names it.
    """
    files = []
    for ref in sample.images[role]:
        with naming(ref):
            file = opened(ref)
            if role not in INTEGER_ROLES and file.indexed:
                hint = "set `convert: rgb` or `convert: grey`, or " if role == "image" else ""
                raise UserError(f"the values are places in a colour table; {hint}save it as grey or RGB")
            if role in INTEGER_ROLES and file.inverted:
                raise UserError(
                    "the file says that 0 is white, which makes the numbers uncertain; save it with 0 as black"
                )
        files.append(file)
    return files


def role_notes(role: str, files: Iterable[ImageFile]) -> list[str]:
    """What the user should know about the files of one role."""
    subject = "instances file" if role == "instances" else role
    found = [f"the {subject} {file.note}" for file in files if file.note]
    if role not in INTEGER_ROLES and any(file.alpha for file in files):
        found.append(f"the {role} has alpha, which is kept as a channel")
    return found


def grouped_notes(found: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each different note, with the first id that it is about and how many more there are."""
    ids: dict[str, list[str]] = {}
    for which, note in found:
        ids.setdefault(note, []).append(which)
    return [
        f"{min(ids[note])}: {note}" + f" (and {len(ids[note]) - 1} more)" * (len(ids[note]) > 1) for note in sorted(ids)
    ]


def read_role(sample: Sample, role: str, opened: Callable[[ImageRef], ImageFile]) -> np.ndarray:
    """The pixels of one role of a sample, whole or in its window.

    Args:
        sample: Which one.
        role: "image", "target", "mask" or "instances".
        opened: Opens an image; one that remembers the last images spares reading a header, or decoding a file that can
            only be read as a whole, anew for every window.

    Returns:
        (C, H, W) for image and target; (H, W) uint8, uint16 or, with values beyond these, int64 for mask and instances.

    Raises:
        UserError: The files cannot be read or do not fit each other; the message names the file.
    """
    planes = []
    for ref, file in zip(sample.images[role], open_role(sample, role, opened), strict=True):
        y0, y1, x0, x1 = sample.window or (0, file.shape[1], 0, file.shape[2])
        with naming(ref):
            planes.append(file.read(y0, y1)[:, :, x0:x1])
    array = planes[0] if len(planes) == 1 else np.concatenate(planes)
    return _as_integers(array, sample, role) if role in INTEGER_ROLES else array


def check_one_channel(sample: Sample, role: str, n_channels: int) -> None:
    """Refuse masks and objects in colours."""
    if n_channels != 1:
        raise UserError(
            f"{sample.images[role][0]}: a {role} image has one channel, this has {n_channels}; save it as grey or "
            "palette"
        )


def _as_integers(array: np.ndarray, sample: Sample, role: str) -> np.ndarray:
    name = str(sample.images[role][0])
    check_one_channel(sample, role, len(array))
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and (array % 1 == 0).all() and (abs(array) < EXACT_IN_FLOAT64).all()):
            raise UserError(f"{name}: a {role} image holds whole numbers, this does not")
    elif array.dtype in (np.uint8, np.uint16):
        return array[0]
    fits = not array.size or (array.min() >= 0 and array.max() <= np.iinfo(np.uint16).max)
    return array[0].astype(np.uint16 if fits else np.int64)
