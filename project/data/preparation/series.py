"""Ids in series without a group: neighbouring frames, tiles or stage positions that a random division separates."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from project.data.raw.samples import Sample

MIN_LENGTH = 3  # numbers that make a series
# What stands before the number of a frame, a tile or a position on the stage.
WORDS = {
    *("t", "time", "timepoint", "tp", "f", "fr", "frame", "z", "slice", "sl", "plane", "stack", "x", "y", "row", "col"),
    *("r", "c", "tile", "patch", "s", "p", "pos", "position", "xy", "point", "stage", "fov", "field", "scan"),
}
MIN_IMAGES = 8  # images whose order can be judged by their brightness
HINT = (
    "Neighbours that overlap or hardly differ leak between the splits: set `group` (a field such as {movie} in the "
    "patterns, or `table.group`), or `split: {by: place}` for one field"
)


def ungrouped_samples(parts: dict[str, list[Sample]]) -> list[Sample]:
    """Samples, by id, that were divided although no group or given split says which belong together; often none."""
    samples = sorted((sample for part in parts.values() for sample in part), key=lambda sample: sample.id)
    divided = [sample for sample in samples if sample.split is None]
    several = len(parts) > 1 or len({sample.fold for sample in samples}) > 1
    return divided if several and all(sample.group == sample.id for sample in samples) else []


def describe_series(samples: Sequence[Sample]) -> str:
    """A warning where ids are numbered as frames, tiles or positions are, or in several series; else ""."""
    series: dict[tuple[str, ...], dict[int, str]] = defaultdict(dict)
    for sample in samples:
        labels = sample.label if isinstance(sample.label, tuple) else (sample.label,)
        parts = re.split(r"(\d+)", "/".join(part for part in sample.id.split("/") if part not in labels))
        for position in range(1, len(parts), 2):
            series[(*parts[:position], "", *parts[position + 1 :])][int(parts[position])] = sample.id
    long = {key: numbers for key, numbers in series.items() if len(numbers) >= MIN_LENGTH}
    named = [numbers for key, numbers in long.items() if _word_before_number(key) in WORDS]
    several = [numbers for key, numbers in long.items() if key[-2] == ""]
    if not named and len(several) < 2:
        return ""
    numbers = (named or several)[0]
    examples = ", ".join(f'"{numbers[number]}"' for number in sorted(numbers)[:MIN_LENGTH])
    return f"ids run in series without a group, such as {examples}. {HINT}"


def _word_before_number(key: tuple[str, ...]) -> str:
    """The word in front of the number that was replaced by "", such as "tile" in ("scan_tile", "", ".tif")."""
    words = re.findall(r"[^\W\d_]+$", key[key.index("", 1) - 1].rstrip("_- "))
    return words[0].casefold() if words else ""


def describe_order(samples: Sequence[Sample], means: Sequence[float]) -> str:
    """A warning where images with successive numbers are alike in brightness, unlike a random order; else "".

    `means` are the mean intensities of the images. Samples whose id does not end in a number are left out.
    """
    numbered = sorted(
        (re.sub(r"\d+$", "", s.id), int(number[0]), mean)
        for s, mean in zip(samples, means, strict=True)
        if (number := re.search(r"\d+$", s.id)) and np.isfinite(mean)
    )
    values = np.array([mean for _, _, mean in numbered])
    if len(values) < MIN_IMAGES or values[:-1].std() == 0 or values[1:].std() == 0:
        return ""
    correlation = float(np.corrcoef(values[:-1], values[1:])[0, 1])
    if correlation < max(0.5, 2.5 / np.sqrt(len(values))):
        return ""
    return (
        f"images with successive numbers are alike without a group (correlation of their mean intensities "
        f"{correlation:.2f}, such as {numbered[0][0]}{numbered[0][1]} ...). {HINT}"
    )
