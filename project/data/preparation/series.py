"""Ids in series without a group: neighbouring frames, tiles or stage positions that a random division separates."""

import re
from collections import defaultdict
from collections.abc import Sequence

from project.data.raw.samples import Sample

MIN_LENGTH = 3  # numbers that make a series
# What stands before the number of a frame, a tile or a position on the stage.
WORDS = {
    *("t", "time", "timepoint", "tp", "f", "fr", "frame", "z", "slice", "sl", "plane", "stack", "x", "y", "row", "col"),
    *("r", "c", "tile", "patch", "s", "p", "pos", "position", "xy", "point", "stage", "fov", "field", "scan"),
}
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
