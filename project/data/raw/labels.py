"""The classes of the images, as numbers."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from project.data.raw.samples import Problems, Sample, first_ids
from project.errors import UserError, bullet_list

# What spreadsheets, pandas and R write for a missing value, in lower case.
MISSING = {"na", "n/a", "#n/a", "nan", "<na>", "null", "none", "nil", "missing", "unknown", "-", "--", "?"}


@dataclass(frozen=True)
class LabelEncoder:
    """How the labels of a dataset become numbers.

    Attributes:
        names: Class names in the order of their numbers.
        codes: Label as written -> class number.
    """

    names: list[str]
    codes: dict[str, int]

    def encode(self, samples: list[Sample]) -> np.ndarray:
        """(N,) int64 class numbers, or (N, K) int64 zeros and ones where images may have several classes."""
        if not isinstance(samples[0].label, tuple):
            return np.array([self.codes[str(sample.label)] for sample in samples], np.int64)
        labels = np.zeros((len(samples), len(self.names)), np.int64)
        for row, sample in zip(labels, samples, strict=True):
            row[[self.codes[text] for text in sample.label or ()]] = 1
        return labels


def find_labels(samples: list[Sample], names: list[str], problems: Problems) -> LabelEncoder | None:
    """The classes of the images, or None where the samples have none.

    Args:
        samples: All samples of the dataset.
        names: As given in the configuration; without them, the labels that occur, numbers in the order of their size.
        problems: Where samples without a label, or with one that is not among the names, are skipped, they are
            `skipped` afterwards.

    Raises:
        UserError: Labels that are not among the names; all are listed. Some samples have one label, some several.
    """
    labelled = [sample for sample in samples if sample.label is not None]
    if not labelled:
        return None
    if len({isinstance(sample.label, tuple) for sample in labelled}) > 1:
        raise UserError("some samples have one label and some a tuple of labels; take one kind for all")
    for sample in samples:
        if sample.label in (None, ""):
            problems.add(sample.id, "has no label")
    problems.raise_or_skip("Every image needs a label where others have one:")
    where: dict[str, list[str]] = {}
    for sample in problems.without_reported(labelled):
        for text in _texts(sample):
            where.setdefault(text, []).append(sample.id)
    if not names:
        problems.warnings += describe_doubtful(Counter({text: len(ids) for text, ids in where.items()}), "labels")
        names = sorted(where, key=lambda t: (not t.isdecimal(), int(t) if t.isdecimal() else 0, t))
        if not names:
            raise UserError("no image has a label; check the label column, or leave it out")
    codes = {name: number for number, name in enumerate(names)}
    numbers = [text for text in where if text.isdecimal()]
    if numbers and not any(name.isdecimal() for name in names) and not any(text in codes for text in where):
        # The raw data has numbers, the configuration their names. Names that are numbers are never counted.
        codes = {text: int(text) for text in numbers if int(text) < len(names)}
    _check_stray({text: ids for text, ids in where.items() if text not in codes}, names, problems)
    used = {codes[text] for text in where if text in codes}
    if absent := [name for number, name in enumerate(names) if number not in used]:
        problems.warnings.append(f"labels: no image is of class {', '.join(absent)}")
    return LabelEncoder(names, codes)


def describe_doubtful(counts: Counter[str], what: str) -> list[str]:
    """Warnings about names that look like a missing value, or like one name in two spellings.

    Args:
        counts: Name -> number of samples.
        what: "labels" or "groups".
    """
    warnings = [
        f'{what}: "{name}" ({n} samples) looks like a missing value; correct or remove these rows if it is one'
        for name, n in sorted(counts.items())
        if name.casefold() in MISSING
    ]
    spellings: dict[str, list[str]] = {}
    for name in sorted(counts):
        spellings.setdefault(_spelling(name), []).append(name)
    for names in spellings.values():
        if len(names) > 1:
            told = " and ".join(f'"{name}" ({counts[name]} samples)' for name in names)
            warnings.append(f"{what}: {told} differ only in their spelling, but are kept apart; is this one name?")
    return warnings


def _spelling(name: str) -> str:
    """The name without case, spaces, hyphens, leading zeros and decimal places of whole numbers."""
    if re.fullmatch(r"[+-]?\d+(\.0*)?", name):
        return str(int(name.partition(".")[0]))
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", "", name.strip().casefold())


def _texts(sample: Sample) -> tuple[str, ...]:
    return sample.label if isinstance(sample.label, tuple) else (sample.label or "",)


def _check_stray(stray: dict[str, list[str]], names: list[str], problems: Problems) -> None:
    if stray and not problems.skip:  # by label: a list of samples would show the first label only
        told = [f"{text}: {first_ids(ids)}" for text, ids in sorted(stray.items())]
        raise UserError(
            f"labels that are not among the classes {names}:\n{bullet_list(told, 100)}\n"
            "Correct them, or add them to `classes`."
        )
    for text, ids in stray.items():
        for id_ in ids:
            problems.add(id_, f'the label "{text}" is not among the classes')
    problems.raise_or_skip("")
