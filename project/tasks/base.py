"""The loop that all tasks share: batch -> normalize -> net -> loss, and metrics of whole images in validation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import MeanMetric

from project.data.batch import Tensors
from project.data.dataset_facts import DatasetFacts
from project.errors import UserError
from project.metrics.base import Direction, EvaluationResult, Metric, MetricCollection
from project.metrics.conformal import Errors
from project.tasks.network import NormalizedNetwork

# Attributes of the datamodule that tasks take as arguments and checkpoints store, so that a model needs no data.
DATA_ATTRIBUTES = (
    *("statistics", "channels", "classes", "ignore_index"),
    *("multi_label", "background", "positive", "has_instances"),
)


class Task(NormalizedNetwork, ABC):
    """Base of all tasks: what a batch means, what is learned from it, and how it is measured.

    A new task declares `kind`, `inputs`, `target_kind` and `default_metrics`, and implements `make_target`,
    `decode_output` and `draw`. Plain Lightning can train it: `Trainer().fit(task, datamodule)`.

    Args:
        net, options: See `project.tasks.network.NormalizedNetwork`.
        loss: Any module that takes the output of the network and the target.
        metrics: Metrics of your own, see `project.metrics.base.Metric`, in addition to those of the task; one of the
            same class as a metric of the task replaces it.
        statistics, channels, classes, ignore_index: Of the data, see `ImageDataModule`; as all `DATA_ATTRIBUTES`.
        intensity_augmentation: Of the normalized input in training; see `project.transforms.intensity`.
        device_augmentation: Of the raw batch on the device in training; see `project.transforms.device`.
        seed: Of random numbers on the device (dropout, noise).
    """

    kind: ClassVar[str]  # "translation", "pretraining" ...: tables group runs by it and the data
    # What is predicted: values per pixel, a class per pixel, classes per image, numbers per image; None if nothing is.
    target_kind: ClassVar[Literal["image", "mask", "label", "value"] | None] = None
    # Arrays of the data file that the task needs, and those that it uses where the file has them.
    inputs: Sequence[str]
    optional_inputs: ClassVar[Sequence[str]] = ()
    default_metrics: ClassVar[Sequence[type[Metric]]]  # in the order of the tables; runs are sorted by the first one
    n_drawn_samples: ClassVar[int] = 4
    n_classes = 0  # of tasks that have classes
    parts: Sequence[str] = ()  # names of target channels, classes or values, for metrics of each of them

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        metrics: list[Metric] | None = None,
        statistics: dict[str, Any] | None = None,
        channels: dict[str, list[str]] | None = None,
        classes: dict[str, list[str]] | None = None,
        ignore_index: int | None = None,
        intensity_augmentation: nn.Module | None = None,
        device_augmentation: nn.Module | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(net, (statistics or {}).get("image"), **options)
        self.loss, self.own_metrics, self.seed = loss, metrics or [], seed
        self.statistics, self.channels, self.classes = statistics or {}, channels or {}, classes or {}
        self.ignore_index = ignore_index
        self.intensity_augmentation = intensity_augmentation or nn.Identity()
        self.device_augmentation = device_augmentation or nn.Identity()
        # It stays on the device, where nothing waits for it, until it is asked for.
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.results: EvaluationResult | None = None

    @classmethod
    def needed_inputs(cls, options: dict[str, Any]) -> tuple[str, ...]:
        """Arrays of the data file that the task needs with these arguments (`init_args` of its configuration)."""
        return tuple(cls.inputs)

    @classmethod
    def network_channels(cls, data: DatasetFacts, options: dict[str, Any]) -> tuple[int, int | None]:
        """Channels that the network takes, and that it has to give for these data and arguments; None: any number."""
        return data.n_channels["image"], None

    @abstractmethod
    def make_target(self, batch: Tensors) -> Tensor:
        """Desired output of the network for a batch: the second argument of the loss."""

    @abstractmethod
    def decode_output(self, output: Tensor) -> Tensor:
        """Output of the network -> prediction in units of the target, or probabilities."""

    def check_output(self, output: Tensor, names: Sequence[str]) -> None:
        """Refuse an output of the network without one channel, or number per image, for each name."""
        n_axes = 2 if self.target_kind in ("label", "value") else 4
        if output.ndim != n_axes or output.shape[1] != len(names):
            shape = tuple(output.shape[1:])
            raise UserError(f"the network gives {shape} per image, but {len(names)} are needed: {', '.join(names)}")

    @abstractmethod
    def draw(self, samples: list[dict[str, Any]]) -> Figure:
        """A figure of some samples: dictionaries of arrays with `prediction` and `id`."""

    def draw_summary(self, results: EvaluationResult) -> Figure | None:
        """A figure of the whole split, such as a confusion matrix."""
        return None

    def forward_batch(self, batch: Tensors) -> tuple[Tensor, Tensor]:
        """Output of the network and target of a batch; in training with augmentation."""
        if self.training:
            batch = self.device_augmentation(batch)
            output = self.apply_net(self.intensity_augmentation(self.network_input(batch)))
            return output, self.make_target(batch)
        target = self.make_target(batch)
        oracle = (target,) if getattr(self.net, "oracle", False) else ()
        return self.apply_net(self.network_input(batch), *oracle), target

    def compute_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        return torch.as_tensor(self.loss(output, target))

    @property
    def is_dense(self) -> bool:
        """Whether there is a prediction for each pixel; otherwise for the image as a whole."""
        return self.target_kind in ("image", "mask")

    @property
    def prediction_settings(self) -> dict[str, Any]:
        """Settings that change the meaning of a prediction: runs that differ in them cannot be averaged."""
        return {}

    @property
    def tags(self) -> list[str]:
        """Endings of the columns of each part, as those of metrics."""
        return [f"/{part}" for part in self.parts] if len(self.parts) > 1 else [""]

    def prediction_files(
        self, prediction: np.ndarray, spread: np.ndarray | None = None, rounded: bool = False
    ) -> dict[str, np.ndarray]:
        """Arrays to write for the prediction of one sample.

        Args:
            prediction: Of `forward`, without the batch axis.
            spread: Standard deviation of the predictions of several runs, of the same shape.
            rounded: Whether predicted images take the dtype of the target.

        Returns:
            Suffix of the file name -> (C, H, W) or (H, W).
        """
        if self.target_kind in ("label", "value"):  # rows of a table say all
            return {}
        return {"": prediction, **({} if spread is None else {"_spread": spread.max(0)})}

    def prediction_row(
        self, prediction: np.ndarray, files: dict[str, np.ndarray], spread: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Columns of predictions.csv for one sample; see `prediction_files`, whose arrays are `files`."""
        if self.target_kind not in ("label", "value"):
            return {}
        prefix = "p/" if self.target_kind == "label" else ""
        row = {f"{prefix}{name}": float(value) for name, value in zip(self.parts, prediction, strict=True)}
        spreads = [] if spread is None else zip(self.parts, spread, strict=True)
        return row | {f"spread/{name}": float(value) for name, value in spreads}

    def describe_target(self, target: Tensor) -> str:
        """Text for one element of `make_target` that is not an image."""
        return ", ".join(f"{value:.4g}" for value in target.flatten()[:4].tolist())

    def sample_pixels(self, prediction: Tensor, batch: Tensors) -> Tensor | None:
        """Predicted and true values, (B, S, C, 2), of pixels of each image, for tasks that have intervals by pixel."""
        return None

    def errors(self, results: EvaluationResult) -> Errors | None:
        """What intervals or sets of predictions are calibrated from; None for tasks without."""
        return None

    @property
    def has_errors(self) -> bool:
        """Whether intervals or sets are calibrated for the task."""
        return type(self).errors is not Task.errors and not getattr(self, "multi_label", False)

    @cached_property
    def metrics(self) -> MetricCollection:
        """The metrics of the task and of the experiment."""
        return MetricCollection([*(metric() for metric in self.default_metrics), *self.own_metrics], self)

    @property
    def main_metrics(self) -> dict[str, Direction]:
        """Columns of the tables, in their order -> the direction in which they are good."""
        # Metrics of the experiment follow the first metric of the task, so that they are among the printed columns.
        first, *others = self.metrics.directions.items()
        return dict([first, *(item for metric in self.own_metrics for item in metric.directions.items()), *others])

    def forward(self, raw: Tensor, image_statistics: Tensor | None = None) -> Tensor:
        """Raw images (B, C, H, W), any size, dtype as in training -> prediction, see `decode_output`, float32.

        `image_statistics` are those of whole images for parts of these, see `project.data.batch.Batch`.
        """
        return self.decode_output(self.apply_net(self.normalize_input(raw, image_statistics)))

    def on_train_epoch_start(self) -> None:
        """Freeze or unfreeze as this epoch asks, and forget the losses of the last one."""
        self.train_loss.reset()
        self.freeze_for_epoch()

    def on_train_batch_start(self, batch: Tensors, batch_idx: int) -> None:
        """Seed the random numbers on the device from (seed, step, batch, rank), so that a run can resume exactly."""
        seed = hash((self.seed, self.global_step, batch_idx, self.global_rank)) % 2**63
        # Not `torch.manual_seed`: where CUDA is built in but not used, it stores its call stack each time.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def training_step(self, batch: Tensors, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss = self.compute_loss(*self.forward_batch(batch))
        self.train_loss.update(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the mean loss, once: `log` costs more than the step of a small network."""
        self.log("train/loss", self.train_loss.compute())

    def validation_step(self, batch: Tensors, batch_idx: int) -> Tensor:
        """Predict whole images once, and measure each; returns the predictions."""
        output, target = self.forward_batch(batch)
        prediction = self.decode_output(output)
        # One image at a time, so that no loss depends on what else is in the batch.
        losses = [self.compute_loss(output[i : i + 1], target[i : i + 1]) for i in range(len(output))]
        pixels = self.sample_pixels(prediction, batch)
        self.metrics.update(prediction, {**batch, "network_target": target}, torch.stack(losses), pixels)
        return prediction

    def on_validation_epoch_start(self) -> None:
        """Forget the batches of an interrupted pass."""
        self.metrics.reset()

    def on_validation_epoch_end(self) -> None:
        """Join the rows of all devices into `results`, and log the metrics."""
        split = "test" if self.trainer.testing else "val"
        self.results = self.metrics.compute(split)
        # All ranks hold all rows, so each logs the same number.
        self.log_dict({f"{split}/{name}": v for name, v in self.results.metrics.items()}, rank_zero_only=False)

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what `__init__` needs besides the configuration; plain numbers, loadable with `weights_only=True`."""
        checkpoint["data"] = {name: getattr(self, name) for name in DATA_ATTRIBUTES if hasattr(self, name)}
