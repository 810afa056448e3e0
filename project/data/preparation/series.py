"""Ids in series without a group: neighbouring frames, tiles or stage positions that a random division separates."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from project.data.raw.samples import Sample

FEWEST = 3  # numbers that make a series
# What stands before the number of a frame, a tile or a position on the stage.
WORDS = {
    *("t", "time", "timepoint", "tp", "f", "fr", "frame", "z", "slice", "sl", "plane", "stack", "x", "y", "row", "col"),
    *("r", "c", "tile", "patch", "s", "p", "pos", "position", "xy", "point", "stage", "fov", "field", "scan"),
}
FEWEST_MEASURED = 8  # images whose order can be judged by their brightness
HINT = (
    "Neighbours that overlap or hardly differ leak between the splits: set `group` (a field such as {movie} in the "
    "patterns, or `table.group`), or `split: {by: place}` for one field"
)


def without_groups(parts: dict[str, list[Sample]]) -> list[Sample]:
    """The samples, by id, that were divided although nothing says which of them belong together; often none."""
    samples = sorted((sample for part in parts.values() for sample in part), key=lambda sample: sample.id)
    divided = [sample for sample in samples if sample.split is None]
    several = len(parts) > 1 or len({sample.fold for sample in samples}) > 1
    return divided if several and all(sample.group == sample.id for sample in samples) else []


def describe_series(samples: Sequence[Sample]) -> str:
    """A warning where ids are numbered as frames, tiles or positions are, or in several series; else ""."""
    series: dict[tuple[str, ...], dict[int, str]] = defaultdict(dict)
    told = ""
    for sample in samples:
        labels = sample.label if isinstance(sample.label, tuple) else (sample.label,)
        parts = re.split(r"(\d+)", "/".join(part for part in sample.id.split("/") if part not in labels))
        for place in range(1, len(parts), 2):
            numbers = series[(*parts[:place], "", *parts[place + 1 :])]
            numbers[int(parts[place])] = sample.id
            word = re.findall(r"[^\W\d_]*", parts[place - 1].rstrip("_- "))[-2:-1]
            if word and word[0].casefold() in WORDS and len(numbers) == FEWEST:
                told = told or _sorted(numbers)
    long = [numbers for key, numbers in series.items() if len(numbers) >= FEWEST and key[-2] == ""]
    if not told and len(long) > 1:
        told = _sorted(long[0])
    return f"ids run in series without a group, such as {told}. {HINT}" if told else ""


def _sorted(numbers: dict[int, str]) -> str:
    return ", ".join(f'"{numbers[number]}"' for number in sorted(numbers)[:FEWEST])


def describe_order(samples: Sequence[Sample], means: Sequence[float]) -> str:
    """A warning where images with successive numbers are alike in brightness, unlike a random order; else "".

    Args:
        samples: Whose ids end in a number; others are left out.
        means: Mean intensity of each image.
    """
    numbered = sorted(
        (re.sub(r"\d+$", "", s.id), int(number[0]), mean)
        for s, mean in zip(samples, means, strict=True)
        if (number := re.search(r"\d+$", s.id)) and np.isfinite(mean)
    )
    values = np.array([mean for _, _, mean in numbered])
    if len(values) < FEWEST_MEASURED or values[:-1].std() == 0 or values[1:].std() == 0:
        return ""
    correlation = float(np.corrcoef(values[:-1], values[1:])[0, 1])
    if correlation < max(0.5, 2.5 / np.sqrt(len(values))):
        return ""
    return (
        f"images with successive numbers are alike without a group (correlation of their mean intensities "
        f"{correlation:.2f}, such as {numbered[0][0]}{numbered[0][1]} ...). {HINT}"
    )
