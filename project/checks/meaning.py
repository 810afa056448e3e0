"""Augmentation that changes what an image means: flips with classes such as left and right, rotations with 6 and 9."""

import re
from collections.abc import Iterator

import numpy as np

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.inputs import Move, augmentations
from project.checks.report import Verdict, warning

SIDE = 32  # pixels of the coordinates that are augmented
# Words that one movement of the image exchanges.
EXCHANGED = {
    "left and right mirrored": "left/right l/r west/east b/d p/q os/od links/rechts gauche/droite leftward/rightward",
    "turned upside down": "up/down top/bottom north/south upper/lower above/below rising/falling n/u m/w b/p d/q",
    "rotated by 180 degrees": "6/9 six/nine b/q d/p n/u m/w",
    "mirrored": "clockwise/counterclockwise clockwise/anticlockwise cw/ccw dextral/sinistral",
    "rotated by 90 degrees": "horizontal/vertical portrait/landscape north/east up/right up/left row/column n/z",
}
ARROWS = str.maketrans({"←": " left ", "→": " right ", "↑": " up ", "↓": " down ", "<": " left ", ">": " right "})


def meaning(ctx: Context) -> Iterator[Verdict]:
    """Whether flips and rotations turn an image of one class into one of another, by the names of the classes."""
    kind = ctx.task.target_kind
    names = ctx.data.classes.get(kind, []) if kind in ("label", "mask") else []
    config = (ctx.train.reader.attributes.get("source") or {}).get("config") or {}
    if kind == "mask" or config.get("arrays"):  # numbers of classes without a name, not drawings of digits
        names = [name for name in names if not name.isdigit()]
    pairs = {what: confused for what, words in EXCHANGED.items() if (confused := _confused(names, words))}
    if not pairs:
        return
    movements = {what: key for key, move in augmentations(ctx) for what in _movements(move)}
    for what, confused in pairs.items():
        if what in movements:
            advice = "the label stays, and becomes wrong: leave such flips and rotations out of "
            yield warning("meaning", f"{confused} are exchanged in images {what}", advice + movements[what])
            return
    yield Verdict("meaning", f"no augmentation exchanges {next(iter(pairs.values()))}")


def _confused(names: list[str], words: str) -> str:
    """Two class names that differ by such words only, as "left eye and right eye"; "" if there are none."""
    split = {tuple(_words(name)): name for name in names}
    for first, second in (pair.split("/") for pair in words.split()):
        for parts, name in split.items():
            other = tuple(second if part == first else part for part in parts)
            if other != parts and other in split:
                return f"{name} and {split[other]}"
    return ""


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.translate(ARROWS))
    spaced = re.sub(r"(?i)\b(counter|anti)[-_ ]clock", r"\1clock", spaced)
    return [str(word).casefold() for word in re.findall(r"[^\W\d_]+|\d+", spaced)]


def _movements(move: Move) -> set[str]:
    """Those movements of `EXCHANGED` that an augmentation makes in some of its draws."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    arrays = {"image": rows[None], "target": np.stack([rows, columns])}
    result = set()
    for index in range(limits.DRAWS):
        y, x = np.asarray(move(arrays, index)["target"])
        (yy, yx), (xy, xx) = ([float(np.median(part)) for part in np.gradient(plane)] for plane in (y, x))
        half = 0.5 * np.sqrt(abs(yy * xx - yx * xy))
        is_mirrored = yy * xx - yx * xy < 0
        movements = {
            "left and right mirrored": xx < -half,
            "turned upside down": yy < -half,
            "rotated by 180 degrees": xx < -half and yy < -half,
            "mirrored": is_mirrored,
            "rotated by 90 degrees": abs(xy) > half,
        }
        result |= {what for what, is_made in movements.items() if is_made}
    return result
