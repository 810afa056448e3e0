"""What the benchmarks share: images, programs timed in turn, tables of their figures in README.md.

Machines are shared and noisy: a figure is a ratio of two things that are timed one after the other, the median of
several rounds. Nothing here is asserted.
"""

import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from project.data.split_writer import write_split

NAMES = ("preparation", "reader", "loader", "loop", "validation", "gpu", "minutes")
ROOT = Path(__file__).parents[2]
PAGE = Path(__file__).with_name("README.md")


@dataclass
class Goal:
    """One figure with its aim, as "≥ 0.95" or "≤ 2 %"; a ratio where there is no unit."""

    what: str
    value: float
    aim: str
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether the value is what it should be."""
        sign, number = self.aim.split()[:2]
        return self.value >= float(number) if sign == "≥" else self.value <= float(number)


@dataclass
class Table:
    """Figures without an aim, or behind one."""

    title: str
    columns: list[str]
    rows: list[list[Any]]
    note: str = ""


@dataclass
class Report:
    """Figures of one benchmark."""

    goals: list[Goal] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def markdown(self) -> str:
        """All goals and tables."""
        rows = [
            [g.what, f"{format_value(g.value)} {g.unit}".strip(), g.aim, "yes" if g.reached else "no"]
            for g in self.goals
        ]
        goals = [Table("", ["what", "measured", "aim", "reached"], rows)] if rows else []
        return "\n".join(map(_markdown, [*goals, *self.tables]))


def alternate(variants: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, list[float]]:
    """Seconds that each variant takes in each round; all run once before, and who begins changes from round to round.

    A variant that returns a float has timed itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            result = variants[name]()
            if turn:
                seconds[name].append(result if isinstance(result, float) else time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """How many times as fast `fast` is as `slow`: the median over the rounds."""
    return statistics.median(s / f for s, f in zip(seconds[slow], seconds[fast], strict=True))


def write_section(name: str, report: Report, seconds: float) -> None:
    """Replace the section of a benchmark in README.md."""
    commit, changes = (
        subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "-uno"))
    )
    head = f"{date.today().isoformat()}, {_machine()}, commit {commit}{'+' * bool(changes)}, {seconds:.0f} s"
    text = f"## {name}\n\n{head}\n\n{report.markdown()}\n"
    page = PAGE.read_text(encoding="utf-8")
    page = re.sub(rf"(?ms)^## {name}\n.*?(?=^## |\Z)", lambda _: text, page) if f"## {name}\n" in page else page + text
    PAGE.write_text(page.rstrip("\n") + "\n", encoding="utf-8")


def _machine() -> str:
    import torch

    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if os.name == "posix" else None
    kind = torch.cuda.get_device_name(0) if torch.cuda.is_available() else (processor or [0, platform.processor()])[1]
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "lightning", "h5py"))
    return f"{kind}, {os.cpu_count()} cores, {packages}"


def _markdown(table: Table) -> str:
    """A table in Markdown; numbers to the right."""
    numbers = [all(isinstance(row[i], int | float) for row in table.rows) for i in range(len(table.columns))]
    lines = [table.columns, ["---:" if number else "---" for number in numbers]]
    lines += [list(map(format_value, row)) for row in table.rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join(part for part in (f"**{table.title}**" if table.title else "", table.note, text) if part) + "\n"


def format_value(value: Any) -> str:
    """A number with three digits: more would be noise."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# Images ---------------------------------------------------------------------------------------------------------------


class Samples(Sequence[np.ndarray]):
    """Blobs with the noise of a camera: image or target (C, size, size) uint16, or mask (size, size) uint8.

    Each is another window of one large field, whose noise is shifted against it, and is made when it is asked for.
    """

    def __init__(self, role: str, count: int, size: int, channels: int = 1, first: int = 0) -> None:
        rng, shape = np.random.default_rng(0), (channels, 2 * size, 2 * size)
        wide = gaussian_filter(rng.random(shape, np.float32), (0, 4, 4))
        self.wide, self.noise = (wide - wide.min()) / np.ptp(wide), rng.normal(120, 8, shape).astype(np.float32)
        self.role, self.size = role, size
        self.corners = rng.integers(0, size, (first + count, 4))[first:].tolist()

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, index: Any) -> Any:
        y, x, v, u = self.corners[index]
        blobs = self.wide[:, y : y + self.size, x : x + self.size]
        if self.role == "mask":
            return (blobs[0] > 0.5).astype(np.uint8)
        light = 250 * (blobs if self.role == "image" else blobs**2)
        return (light + self.noise[:, v : v + self.size, u : u + self.size]).astype(np.uint16)


def write_dataset(
    folder: Path, n: dict[str, int], size: int, roles: tuple[str, ...], channels: int = 1, compression: str = "none"
) -> None:
    """Split files, as `make data` writes them."""
    folder.mkdir(parents=True)
    names = {role: [f"{role}{c}" for c in range(channels)] for role in roles if role in ("image", "target")}
    attributes: dict[str, Any] = {"channels": names, "classes": {"mask": ["dark", "bright"]} if "mask" in roles else {}}
    attributes |= {"background": "dark", "split": {}, "source": {"command": "tests/benchmarks"}}
    first = 0
    for split, count in n.items():
        arrays = {role: Samples(role, count, size, channels, first) for role in roles}
        ids = [f"{split}{i:05d}" for i in range(count)]
        statistics = write_split(folder / f"{split}.h5", arrays, ids, ids, compression=compression, **attributes)
        attributes.setdefault("statistics", statistics)
        first += count
