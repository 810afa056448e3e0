"""What a check says, and what it is given."""

import copy
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from project.data.batch import Tensors
from project.data.dataset import stored_image_statistics
from project.data.store import SplitReader, Window
from project.tasks.base import Task
from project.training.lightning_cli import ExperimentCLI

Level = Literal["ok", "warning", "error"]
PIXELS = ("image", "target")  # the arrays that hold intensities
SIDE = 384  # pixels of an image that are looked at along each side, in its middle
CROP = 256  # the same, of training samples
SAMPLES = 32  # images of a split that are looked at
WIDTH = 110  # of a line


@dataclass(frozen=True)
class Verdict:
    """What one check found.

    Attributes:
        name: What was looked at.
        measured: A value, as it is shown.
        level: "error" is not safe to train.
        advice: What is wrong and what to do; nothing where all is well.
    """

    name: str
    measured: str
    level: Level = "ok"
    advice: str = ""


@dataclass
class Report:
    """The verdicts on one experiment.

    Attributes:
        experiment, dataset: What was checked.
        verdicts: In the order of the checks.
        seconds: How long that took.
        pictures: Names of files in the folder of the report.
    """

    experiment: str
    dataset: str
    verdicts: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0
    pictures: list[str] = field(default_factory=list)

    @property
    def safe(self) -> bool:
        """Whether nothing speaks against training."""
        return not self.of("error")

    def of(self, *levels: Level) -> list[Verdict]:
        """The verdicts of some levels."""
        return [verdict for verdict in self.verdicts if verdict.level in levels]

    def text(self, *levels: Level) -> str:
        """One line for each verdict, all of them by default; longer advice, or a traceback, goes on below."""
        verdicts = self.of(*levels) if levels else self.verdicts
        first = 10 + max((len(v.name) for v in verdicts), default=0) + 2
        second = first + max((len(v.measured) for v in verdicts if v.advice), default=0) + 2
        lines = []
        for v in verdicts:
            head = f"{v.level:10}{v.name}".ljust(first) + v.measured
            advice, *traceback = v.advice.splitlines() or [""]
            if not advice:
                lines.append(head)
            elif second > 0.6 * WIDTH:  # no room beside it
                lines += [head, textwrap.fill(advice, WIDTH, initial_indent=" " * 10, subsequent_indent=" " * 10)]
            else:
                head = head.ljust(second)
                lines.append(textwrap.fill(advice, WIDTH, initial_indent=head, subsequent_indent=" " * second))
            lines += [f"          {line}" for line in traceback]
        return "\n".join(lines)

    def summary(self) -> str:
        """How many of each kind, in one line."""
        count = Counter(v.level for v in self.verdicts)
        told = ", ".join(f"{count[level]} {level}{'s' * (level != 'ok' and count[level] > 1)}" for level in _LEVELS)
        return f"{told}: {'safe to train' if self.safe else 'not safe to train'} ({self.seconds:.0f} s)"

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"safe": self.safe, **asdict(self)}


_LEVELS: tuple[Level, ...] = ("ok", "warning", "error")


class Context:
    """What checks look at: a copy of the task, and samples as the datamodule gives them. The training sees none of it.

    Args:
        cli: The experiment, with the datamodule set up for "fit".
        kind: "brief" looks at less.
        device: Where networks compute.
    """

    def __init__(self, cli: ExperimentCLI, kind: Literal["brief", "full"], device: torch.device) -> None:
        self.cli, self.kind, self.device = cli, kind, device
        self.data = cli.datamodule
        self.task: Task = copy.deepcopy(cli.model).to(device)
        # Memory and augmentation of their own.
        self.train, self.val = (self.data.datasets[split].for_thread() for split in ("train", "val"))
        self.roles = tuple(dict.fromkeys([*self.data.roles]))
        self.notes: dict[str, Any] = {}  # what a check found and the pictures show

    @property
    def readers(self) -> dict[str, SplitReader]:
        """Training and validation."""
        return {"train": self.train.reader, "val": self.val.reader}

    @property
    def pixel_roles(self) -> list[str]:
        """Of "image" and "target", those that the task reads."""
        return [role for role in PIXELS if role in self.roles]

    def channel_names(self, role: str) -> list[str]:
        """One name for each channel."""
        n = self.train.reader.shapes[role][0][0]
        names = self.data.channels.get(role, [])
        return list(names) if len(names) == n else [str(c) for c in range(n)]

    def read(self, split: str, role: str, index: int, side: int = SIDE) -> np.ndarray:
        """The middle of one array as it lies in the file."""
        reader = self.readers[split]
        return reader.read(role, index, middle(reader.shapes[role][index], side))

    @cached_property
    def raw(self) -> dict[str, list[Tensors]]:
        """Split -> some samples as they lie in the file, evenly over the split, as batches of one."""
        return {split: [self._sample(split, i) for i in spread(len(r), SAMPLES)] for split, r in self.readers.items()}

    def _sample(self, split: str, index: int) -> Tensors:
        reader = self.readers[split]
        roles = [role for role in reader.dtypes if role in (*self.roles, *self.data.optional_roles)]
        batch = {role: torch.from_numpy(self.read(split, role, index))[None] for role in roles}
        batch["index"] = torch.tensor([index])
        if "image" in reader.image_statistics:
            batch["image_statistics"] = stored_image_statistics(reader, [index])
        if reader.labels is not None:
            batch["label"] = torch.from_numpy(reader.labels[[index]])
        return batch

    def batch(self, n: int, epoch: int = 0, first: int = 0) -> Tensors:
        """A training batch, as the loader would give it, of samples all over the split; on the device.

        Args:
            n: Number of samples, at most as many as there are.
            epoch: Of the draws.
            first: How many samples to pass over.
        """
        order = np.random.default_rng(0).permutation(len(self.train))
        order = np.roll(order, -first)[:n]
        batch = {
            name: value.clone() for name, value in self.train.__getitems__([(epoch, int(i)) for i in order]).items()
        }
        return self.to_device(batch)

    def to_device(self, batch: Tensors) -> Tensors:
        """The same on the device."""
        return {name: value.to(self.device) for name, value in batch.items()}

    def fresh(self) -> Task:
        """A further copy of the task, in training mode, with the draws on the device made anew."""
        torch.manual_seed(self.task.seed)
        task: Task = copy.deepcopy(self.task).train()
        return task

    @property
    def batch_size(self) -> int:
        """Of a training step on one device."""
        return self.data.batch_size


def spread(n: int, most: int) -> list[int]:
    """At most `most` of `n` positions, evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()


def middle(shape: Sequence[int], side: int) -> Window:
    """The window (y0, y1, x0, x1) in the middle of an image."""
    ends = []
    for size in shape[-2:]:
        start = max(size - side, 0) // 2
        ends += [start, min(start + side, size)]
    return ends[0], ends[1], ends[2], ends[3]


def centre(batch: Tensors, side: int = CROP) -> Tensors:
    """The middle of all arrays of a batch."""
    found = {}
    for name, value in batch.items():
        if name in (*PIXELS, "mask", "instances"):
            y0, y1, x0, x1 = middle(tuple(value.shape), side)
            value = value[..., y0:y1, x0:x1]
        found[name] = value
    return found


def modules(ctx: Context) -> Iterator[torch.nn.Module]:
    """All modules of the loss."""
    yield from ctx.task.loss.modules()
