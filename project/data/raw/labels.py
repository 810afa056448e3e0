"""Labels of images as class numbers."""

import difflib
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from project.data.raw.samples import Problems, Sample, first_ids
from project.errors import UserError
from project.formatting import first_few

# What spreadsheets, pandas and R write for a missing value, in lower case.
MISSING = {"na", "n/a", "#n/a", "nan", "<na>", "null", "none", "nil", "missing", "unknown", "-", "--", "?"}
RARE, SIMILAR = 5, 0.85  # a misspelt name is so many times rarer, and so similar in letters (difflib)


@dataclass(frozen=True)
class LabelEncoder:
    """Class numbers of the labels of a dataset."""

    names: list[str]  # in the order of the numbers
    codes: dict[str, int]  # label as written -> class number

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
        problems: Gets samples without a label, or with one that is not among the names.
    """
    labeled = [sample for sample in samples if sample.label is not None]
    if not labeled:
        return None
    if len({isinstance(sample.label, tuple) for sample in labeled}) > 1:
        raise UserError("some samples have one label and some a tuple of labels; use one kind for all")
    ids: dict[str, list[str]] = {}  # by label
    for sample in samples:
        if sample.label in (None, ""):
            problems.add(sample.id, "has no label")
            continue
        for text in sample.label if isinstance(sample.label, tuple) else (str(sample.label),):
            ids.setdefault(text, []).append(sample.id)
    if not names:
        counts = Counter({text: len(of) for text, of in ids.items()})
        problems.notes.append(f"labels: {first_few([f'{name} {n}' for name, n in counts.most_common()], 'splits.csv')}")
        problems.warnings += describe_doubtful(counts, "labels") + describe_misspelt(counts)
        names = sorted(ids, key=lambda t: (not t.isdecimal(), int(t) if t.isdecimal() else 0, t))
        if not names:
            raise UserError("no image has a label; check the label column, or leave it out")
    codes = {name: number for number, name in enumerate(names)}
    if not any(name.isdecimal() for name in names) and codes.keys().isdisjoint(ids):
        # The raw data may have numbers, and the configuration their names; names that are numbers are never positions.
        codes = {text: int(text) for text in ids if text.isdecimal() and int(text) < len(names)} or codes
    for text in sorted(ids.keys() - codes.keys()):
        reason = (
            f'the label "{text}" is not among the classes {first_ids(names, 8)}; correct it, or add it to `classes`'
        )
        problems.pending += [(id_, reason) for id_ in ids[text]]
    used = {codes[text] for text in ids if text in codes}
    if unused := [name for number, name in enumerate(names) if number not in used]:
        problems.warnings.append(f"labels: no image is of class {', '.join(unused)}")
    return LabelEncoder(names, codes)


def describe_doubtful(counts: Counter[str], kind: str) -> list[str]:
    """Warnings about names (with their numbers of samples) that look like a missing value, or one in two spellings."""
    warnings = [
        f'{kind}: "{name}" ({n} samples) looks like a missing value; correct or remove these rows if it is one'
        for name, n in sorted(counts.items())
        if name.casefold() in MISSING
    ]
    spellings: dict[str, list[str]] = {}
    for name in sorted(counts):
        spellings.setdefault(_spelling(name), []).append(name)
    for names in spellings.values():
        if len(names) > 1:
            listed = " and ".join(f'"{name}" ({counts[name]} samples)' for name in names)
            warnings.append(f"{kind}: {listed} differ only in their spelling, but are kept apart; is this one name?")
    return warnings


def describe_misspelt(counts: Counter[str]) -> list[str]:
    """Warnings about rare names that are close to a frequent one, numbers in them aside."""
    warnings = []
    for name, n in sorted(counts.items()):
        digits = re.findall(r"\d+", name)
        frequent = [other for other, m in counts.items() if m >= RARE * n and re.findall(r"\d+", other) == digits]
        close = difflib.get_close_matches(name, frequent, n=1, cutoff=SIMILAR)
        warnings += [f"labels: {name} ({n}): misspelt {other} ({counts[other]})?" for other in close]
    return warnings


def _spelling(name: str) -> str:
    """The name without case, spaces, hyphens, leading zeros and decimal places of whole numbers."""
    if re.fullmatch(r"[+-]?\d+(\.0*)?", name):
        return str(int(name.partition(".")[0]))
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", "", name.strip().casefold())
