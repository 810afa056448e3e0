"""Metrics: one value per sample, and what follows for a whole split; gathered over batches and devices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from project.data.batch import Tensors
from project.errors import UserError

Rows = dict[str, Tensor]  # column of samples/<split>.csv -> (N,), one value per sample
Direction = Literal["min", "max", "zero"]
Aggregate = tuple[dict[str, float], dict[str, int]]  # metrics of a split; numbers of samples without a value


class Metric:
    """A metric: a name, a direction, and one value per sample.

    The mean over the samples, the number of undefined values, the column of the tables and the intervals follow. To add
    one, subclass it in a file of your own (project/README.md has an example) and name it in the experiment.

    Metrics that are not a mean over samples (pooled over pixels, correlations, rankings) override `columns`, which
    returns what has to be known of each sample, and `aggregate`, which computes them from these columns.
    """

    name = ""
    higher_is_better = True
    parts: Sequence[str] = ()
    main: Any = slice(None)  # positions of the parts that the plain name is the mean of

    def setup(self, task: Any) -> None:
        """Called once with the task, which knows the data; `task.parts` are its channels, classes or values."""
        self.parts = task.parts

    def __call__(self, prediction: Tensor, batch: Tensors) -> Tensor:
        """Values of the samples of a batch.

        Args:
            prediction: As `task(batch["image"])` returns it: (B, C, H, W) or (B, K) in units of the target, or
                probabilities of the classes, (B, K, H, W) in segmentation and (B, K) in classification.
            batch: See `project.data.batch.Batch`; "network_target" is what the loss compares the output with.

        Returns:
            (B,), or (B, K) for the K parts of the task; NaN where the metric is not defined.
        """
        raise NotImplementedError

    @property
    def directions(self) -> dict[str, Direction]:
        """Metrics for tables, in their order -> in which direction they are good; runs are sorted by the first."""
        return {self.name: "max" if self.higher_is_better else "min"}

    @property
    def settings(self) -> dict[str, float]:
        """Settings that change the values: only runs with the same ones are compared."""
        return {}

    def columns(self, prediction: Tensor, batch: Tensors) -> Rows:
        """Columns of the samples of a batch, (B,) each; (B, K) values become one column `name/part` for each part."""
        values = self(prediction, batch)
        return {self.name: values} if values.ndim == 1 else self.by_part({self.name: values})

    def by_part(self, columns: Rows) -> Rows:
        """(B, K) columns -> (B,) columns `name/part`; plain names where there is a single part."""
        return {f"{name}{tag}": values[:, k] for name, values in columns.items() for k, tag in enumerate(self.tags)}

    @property
    def tags(self) -> list[str]:
        """Endings of the columns of each part."""
        return [f"/{part}" for part in self.parts] if len(self.parts) > 1 else [""]

    def aggregate(self, rows: Rows) -> Aggregate:
        """Metrics of a split from the columns of all samples, (N,) float64; how often each is not defined."""
        return self.mean_of_defined(rows, [self.name])

    def mean_of_defined(self, rows: Rows, names: Sequence[str]) -> Aggregate:
        """Means over the samples for which a metric is defined: of each part, and the mean of these."""
        metrics, undefined = dict[str, float](), dict[str, int]()
        for name in names:
            if name in rows:
                columns = rows[name][None]
                metrics[name] = columns.nanmean().item()
            else:
                columns = torch.stack([rows[f"{name}{tag}"] for tag in self.tags])
                metrics |= self.with_mean(name, columns.nanmean(1))
                columns = columns[self.main]
            if count := int(columns.isnan().sum()):
                undefined[name] = count
        return metrics, undefined

    def with_mean(self, name: str, values: Tensor) -> dict[str, float]:
        """Values (K,) of the parts as `name/part`, and the mean of those that are defined."""
        of_parts = {f"{name}{tag}": value for tag, value in zip(self.tags, values.tolist(), strict=True)}
        return {name: values[self.main].nanmean().item()} | of_parts

    def details(self, rows: Rows) -> dict[str, Any]:
        """What does not fit into one number, such as a confusion matrix, as plain JSON."""
        return {}


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, of (N,) each; NaN if either is constant."""
    if (a == a[:1]).all() or (b == b[:1]).all():  # so is a single number, or none
        return a.new_tensor(torch.nan)
    a, b = a - a.mean(), b - b.mean()
    return ((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1)


@dataclass
class EvaluationResult:
    """Result of one pass over a split."""

    split: str  # "val" or "test"
    metrics: dict[str, float]  # over the whole split
    undefined: dict[str, int]  # metric -> number of undefined values, of samples or classes, left out of its mean
    index: Tensor  # (N,) positions in the split, ascending
    rows: Rows
    details: dict[str, Any] = field(default_factory=dict)  # such as a confusion matrix, as plain JSON
    pixels: Tensor | None = None  # (N, S, C, 2) predicted and true values of pixels sampled from each image


class MetricCollection:
    """The metrics of a task over one pass; exact for any batch size, number of workers and devices.

    Args:
        metrics: In the order of the tables; of two of one class the second counts.
        task: See `Metric.setup`.

    Raises:
        UserError: Two metrics have one name.
    """

    def __init__(self, metrics: Sequence[Metric], task: Any) -> None:
        self.metrics = list({type(metric): metric for metric in metrics}.values())
        names = [name for metric in self.metrics for name in metric.directions]
        if repeated := {name for name in names if names.count(name) > 1 or not name}:
            raise UserError(f"metrics: names must differ and not be empty: {', '.join(map(repr, sorted(repeated)))}")
        for metric in self.metrics:
            metric.setup(task)
        self.batches: list[tuple[Tensor, Rows]] = []

    @property
    def directions(self) -> dict[str, Direction]:
        return {name: value for metric in self.metrics for name, value in metric.directions.items()}

    @property
    def settings(self) -> dict[str, float]:
        return {name: value for metric in self.metrics for name, value in metric.settings.items()}

    def columns(self, prediction: Tensor, batch: Tensors) -> Rows:
        """Columns of a batch, (B,) each."""
        if prediction.device.type == "mps":  # has no float64
            prediction, batch = prediction.cpu(), {name: value.cpu() for name, value in batch.items()}
        return {k: v for metric in self.metrics for k, v in metric.columns(prediction, batch).items()}

    def update(self, prediction: Tensor, batch: Tensors, loss: Tensor, pixels: Tensor | None = None) -> None:
        """Add a batch; everything stays on the device until the end, because fetching would wait for the device.

        `pixels` are those of `EvaluationResult`.
        """
        rows = {"loss": loss, **self.columns(prediction, batch)}
        self.batches.append((batch["index"], rows if pixels is None else {"pixels": pixels, **rows}))

    def reset(self) -> None:
        self.batches = []

    def compute(self, split: str) -> EvaluationResult:
        """Join the rows of all batches and devices; a collective operation."""
        batches = [
            (index.cpu(), {k: column.cpu() if k == "pixels" else column.cpu().double() for k, column in rows.items()})
            for index, rows in self.batches
        ]
        self.reset()
        if distributed():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, batches)
            batches = [batch for rank in gathered for batch in rank]
        index = torch.cat([batch[0] for batch in batches])
        order = index.argsort()
        assert len(index.unique()) == len(index), "a sample was evaluated twice: metrics would be wrong"
        rows = {name: torch.cat([batch[1][name] for batch in batches])[order] for name in batches[0][1]}
        pixels = rows.pop("pixels", None)
        metrics, undefined = self.aggregate(rows)
        details = {name: value for metric in self.metrics for name, value in metric.details(rows).items()}
        return EvaluationResult(split, metrics, undefined, index[order], rows, details, pixels)

    def aggregate(self, rows: Rows, skip_missing: bool = False) -> Aggregate:
        """Metrics of a split from its rows, the loss first; without those that are not defined for any sample.

        Rows may be those of a bootstrap resample or of another run; with `skip_missing`, metrics without columns, which
        the other run did not compute, are left out.
        """
        counted = rows["n_annotated"] > 0 if "n_annotated" in rows else torch.ones(len(rows["loss"]), dtype=torch.bool)
        metrics = {"loss": rows["loss"][counted].mean().item()}
        undefined = {"loss": int((~counted).sum())} if not counted.all() else {}
        for metric in self.metrics:
            try:
                values, counts = metric.aggregate(rows)
            except KeyError:
                if not skip_missing:
                    raise
                continue
            metrics |= {name: value for name, value in values.items() if not math.isnan(value)}
            undefined |= counts
        return metrics, undefined


def distributed() -> bool:
    """Whether there are several processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
