"""The loop that all tasks share: batch -> normalise -> net -> loss, and scores per sample in validation."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from project.data.statistics import image_statistics
from project.errors import UserError
from project.models.finetuning import Finetuning
from project.models.pretrained import Pretrained, input_statistics, load_pretrained
from project.models.unused import drop_unused
from project.optimizers import build_optimizers
from project.transforms.normalize import Method, Normalize

log = logging.getLogger("project")

# Attributes of the datamodule that tasks take as arguments and checkpoints keep, so that a model needs no data.
DATA_ATTRIBUTES = (
    "statistics",
    "channels",
    "classes",
    "ignore_index",
    "multi_label",
    "background",
    "positive",
    "has_instances",
)

Batch = dict[str, Tensor]
Rows = dict[str, Tensor]


@dataclass
class EvaluationResult:
    """What one pass over a split gave.

    Attributes:
        split: "val" or "test".
        metrics: Name -> number, over the whole split.
        undefined: Score -> number of samples for which it is not defined; they do not count in its mean.
        index: (N,) positions in the split, ascending.
        rows: Column -> (N,) float64, one row per sample.
        details: What does not fit into one number, such as a confusion matrix, as plain JSON.
    """

    split: str
    metrics: dict[str, float]
    undefined: dict[str, int]
    index: Tensor
    rows: Rows
    details: dict[str, Any] = field(default_factory=dict)


class MeanOverSteps:
    """Mean of one number per step; stays on the device, where nothing waits for it, until it is asked for."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0
        self.mean: float | None = None

    def add(self, value: Tensor) -> None:
        """Add the number of a step, a scalar on any device."""
        value = value.detach().float()
        self.total = value if self.total is None else self.total + value
        self.count, self.mean = self.count + 1, None

    def state_dict(self) -> dict[str, Any]:
        """Sum and number over all devices, each of which has to ask; for a checkpoint in the middle of an epoch."""
        if not _distributed() or self.total is None:
            return {"total": self.total, "count": self.count}
        sums = torch.stack([self.total, torch.full_like(self.total, self.count)])
        torch.distributed.all_reduce(sums)
        return {"total": sums[0], "count": int(sums[1].item())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, on one of the devices."""
        self.total, self.count, self.mean = state["total"], state["count"], None

    def compute(self) -> float:
        """The mean over all steps of all devices; a collective operation when first called after a step."""
        if self.mean is None:
            total = torch.zeros(()) if self.total is None else self.total
            sums = torch.stack([total, torch.full_like(total, self.count)])
            if _distributed():
                torch.distributed.all_reduce(sums)
            total, count = sums
            self.mean = (total / count).item()
        return self.mean


class Task(LightningModule, ABC):
    """Base of all tasks.

    A task says which arrays it reads (`inputs`), how a batch becomes a loss, a prediction and scores, and what its
    picture looks like. Normalisation belongs to it, so that it travels in the checkpoint and cannot drift between
    training and use.

    Args:
        net: Any module that maps normalised (B, C, H, W) to (B, C', H, W) or (B, K).
        loss: Any module; what it is given is the task's matter.
        statistics: Of the training split, from the datamodule, as are all `DATA_ATTRIBUTES`. They are stored in the
            checkpoint, so that a model can be rebuilt without its data.
        channels: Role -> names of its channels.
        classes: Role ("mask" or "label") -> names of its classes.
        ignore_index: Value of a mask that stands for "not annotated".
        input_normalization: See `project.transforms.normalize.Normalize`.
        intensity_augmentation: Of the normalised input, such as
            `project.transforms.intensity.IntensityAugmentation`; in training only.
        device_augmentation: Of the raw batch on the device, such as `project.transforms.device.DeviceGeometry`; in
            training only.
        pretrained: Weights from a file; see `project.models.pretrained.Pretrained`.
        finetuning: Freezing, and rates by layer; see `project.models.finetuning.Finetuning`.
        size_divisor: Height and width are padded to a multiple of this, at the lower right, by repeating the border,
            and the output is cropped: encoders halve their input several times.
        channels_last: Memory layout of the network; on CPUs and recent GPUs the faster one for convolutions.
        compile: Compile the network with `torch.compile`: a minute or more at first, then faster steps.
        seed: Of what is drawn on the device (dropout, noise).
    """

    # What tables group runs by, together with the data: "translation", "segmentation", "pretraining" ...
    kind: ClassVar[str]
    # Arrays of the data file that the task needs, and those that it uses where the file has them.
    inputs: ClassVar[tuple[str, ...]]
    optional_inputs: ClassVar[tuple[str, ...]] = ()
    # What is predicted: values per pixel, a class per pixel, classes per image, numbers per image; None if nothing is.
    target_kind: ClassVar[Literal["image", "mask", "label", "value"] | None] = None
    # What a table shows, in this order, and the direction in which it is good; runs are sorted by the first.
    main_metrics: ClassVar[dict[str, Literal["min", "max", "zero"]]]
    n_drawn_samples: ClassVar[int] = 4
    n_classes = 0  # of tasks that have classes
    # `class_path` and `init_args`, from the sections of an experiment file; see `project.optimizers`.
    optimizer: Any = None
    lr_scheduler: Any = None

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        statistics: dict[str, Any] | None = None,
        channels: dict[str, list[str]] | None = None,
        classes: dict[str, list[str]] | None = None,
        ignore_index: int | None = None,
        input_normalization: Method = "mean_std",
        intensity_augmentation: nn.Module | None = None,
        device_augmentation: nn.Module | None = None,
        pretrained: Pretrained | None = None,
        finetuning: Finetuning | None = None,
        size_divisor: int = 32,
        channels_last: bool = True,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        drop_unused(net)
        self.loaded_weights = load_pretrained(net, pretrained) if pretrained else []
        for line in self.loaded_weights:
            log.info("%s", line)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.memory_format)
        if compile:
            self.net.compile()
        self.loss, self.intensity_augmentation, self.size_divisor, self.seed = (
            loss,
            intensity_augmentation or nn.Identity(),
            size_divisor,
            seed,
        )
        self.statistics, self.channels, self.classes = statistics or {}, channels or {}, classes or {}
        self.ignore_index, self.finetuning = ignore_index, finetuning
        self.device_augmentation = device_augmentation or nn.Identity()
        encoder = input_statistics(net) if input_normalization == "encoder" else None
        self.normalize_input = Normalize(self.statistics.get("image"), input_normalization, encoder)
        self._epoch_loss = MeanOverSteps()
        self.results: EvaluationResult | None = None
        self._rows: list[tuple[Tensor, Rows]] = []

    # What a task adds -------------------------------------------------------------------------------------------------

    @abstractmethod
    def decode_output(self, output: Tensor) -> Tensor:
        """Network output -> prediction in the target's own units, or probabilities."""

    @abstractmethod
    def make_target(self, batch: Batch) -> Tensor:
        """What the network should give for a batch: the second argument of the loss."""

    @abstractmethod
    def score(self, prediction: Tensor, batch: Batch) -> Rows:
        """Scores and counts per sample: column -> (B,) float64, NaN where not defined."""

    @abstractmethod
    def aggregate(self, rows: Rows) -> tuple[dict[str, float], dict[str, int]]:
        """Metrics of a split and numbers of undefined samples, from the rows of all samples."""

    @abstractmethod
    def draw(self, samples: list[dict[str, Any]]) -> Figure:
        """A picture of some samples: dictionaries of arrays with `prediction` and `id`."""

    def details(self, rows: Rows) -> dict[str, Any]:
        """What does not fit into one number; stands in metrics.json under "details"."""
        return {}

    def draw_summary(self, results: EvaluationResult) -> Figure | None:
        """A picture of the whole split, such as a confusion matrix."""
        return None

    def compute_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        loss: Tensor = self.loss(output, target)
        return loss

    @property
    def is_dense(self) -> bool:
        """Whether there is a prediction for each pixel; otherwise for the image as a whole."""
        return self.target_kind in ("image", "mask")

    @property
    def prediction_range(self) -> float:
        """Width of the range of predictions, which differences are compared with; 1 for probabilities."""
        return 1.0

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
        return {"": prediction, **({} if spread is None else {"_spread": spread.max(0)})}

    def prediction_row(
        self, prediction: np.ndarray, files: dict[str, np.ndarray], spread: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Columns of predictions.csv for one sample; see `prediction_files`, whose arrays are `files`."""
        return {}

    def describe_target(self, target: Tensor) -> str:
        """Text for one element of `make_target` that is not an image."""
        numbers = [f"{value:.4g}" for value in target.reshape(-1).tolist()]
        return ", ".join(numbers[:4]) + (" ..." if len(numbers) > 4 else "")

    @property
    def metric_settings(self) -> dict[str, float]:
        """Settings that scores depend on: only runs in which they agree stand in one table."""
        return {}

    def check_baseline(self) -> None:
        """Refuse a baseline that is made for another number of classes; called by tasks that have classes.

        Raises:
            UserError: It is.
        """
        n = getattr(self.net, "classes", 0)
        if hasattr(self.net, "fit") and n not in (0, self.n_classes):
            raise UserError(f"{type(self.net).__name__} is for {n} classes, and there are {self.n_classes}")

    # The loop ---------------------------------------------------------------------------------------------------------

    def forward(self, raw: Tensor) -> Tensor:
        """Whole raw images (B, C, H, W), any size, dtype as trained -> prediction in the target's units, float32."""
        return self.decode_output(self.apply_net(self.normalize(raw)))

    def normalize(self, raw: Tensor) -> Tensor:
        """Whole raw images (B, C, H, W) of the camera's dtype -> normalised float32."""
        return self.normalize_input(raw)

    def network_input(self, batch: Batch) -> Tensor:
        """The normalised `image` of a batch, (B, C, H, W) float32.

        Raises:
            UserError: Images are to be normalised by their own statistics, and the file does not hold these: the
                batch may show crops, whose statistics are others.
        """
        if type(self).normalize is not Task.normalize or not self.normalize_input.by_image:
            return self.normalize(batch["image"])
        if "image_statistics" not in batch:
            raise UserError(
                f'input_normalization "{self.normalize_input.method}" needs image_statistics, those of each whole '
                "image, which the data file does not have; prepare the dataset again"
            )
        return self.normalize_input(batch["image"], batch["image_statistics"])

    def as_batch(self, sample: dict[str, Any]) -> Batch:
        """A sample with a whole `image` (C, H, W) and its `index`, as `draw` gets it, as a batch of one."""
        arrays = {
            "image": sample["image"],
            "image_statistics": image_statistics(sample["image"]),
            "index": sample["index"],
        }
        return {name: torch.as_tensor(value)[None].to(self.device) for name, value in arrays.items()}

    def apply_net(self, x: Tensor, *target: Tensor) -> Tensor:
        """The network on normalised input of any size; float32 whatever the precision of training.

        Oracles, baselines that may see the target, get it as second argument.
        """
        height, width = x.shape[-2:]
        pad = (-height) % self.size_divisor, (-width) % self.size_divisor
        if any(pad):
            x = functional.pad(x, (0, pad[1], 0, pad[0]), mode="replicate")
        output = self.net(x.contiguous(memory_format=self.memory_format), *target)
        if not isinstance(output, Tensor):
            raise UserError(_several_outputs(self.net, output))
        output = output.float()
        if output.ndim == 4:
            output = output[..., :height, :width]
        return output.contiguous()

    def train(self, mode: bool = True) -> "Task":
        """As of every module; what is frozen stays as in evaluation, or its batch statistics would drift."""
        super().train(mode)
        if mode and self.finetuning:
            self.finetuning.train_mode(self.net)
        return self

    def on_train_start(self) -> None:
        """A training that is resumed in the middle of an epoch does not start the epoch."""
        self._freeze()

    def on_train_epoch_start(self) -> None:
        """Freeze or release what the epoch says, and forget the losses of the last one."""
        self._epoch_loss = MeanOverSteps()
        self._freeze()

    def _freeze(self) -> None:
        if self.finetuning:
            self.finetuning.apply(self.net, self.current_epoch)
            self.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what is drawn on the device from (seed, step, batch, rank): a stopped run can go on exactly."""
        seed = hash((self.seed, self.global_step, batch_idx, self.global_rank)) % 2**63
        # Not `torch.manual_seed`: where CUDA is built in but not used, it notes its call stack each time, for ever.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        batch = self.device_augmentation(batch)
        output = self.apply_net(self.intensity_augmentation(self.network_input(batch)))
        loss = self.compute_loss(output, self.make_target(batch))
        self._epoch_loss.add(loss)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the mean loss: once, for `log` costs more than a small network's step."""
        self.log("train/loss", self.mean_train_loss())

    def mean_train_loss(self) -> float:
        """Mean over the steps of the epoch so far, and over all devices, each of which has to ask; NaN before any."""
        return self._epoch_loss.compute()

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Predict whole images once, and score each; returns the predictions."""
        target = self.make_target(batch)
        oracle = (target,) if getattr(self.net, "oracle", False) else ()
        output = self.apply_net(self.network_input(batch), *oracle)
        prediction = self.decode_output(output)
        # One image at a time, so that no loss depends on what else is in the batch.
        loss = torch.stack([self.compute_loss(output[i : i + 1], target[i : i + 1]) for i in range(len(output))])
        rows = {"loss": loss, **self.score(prediction, batch)}
        # They stay where they are until the end: fetching them would wait for the device.
        self._rows.append((batch["index"], rows))
        return prediction

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        """Forget the rows of an interrupted pass."""
        self._rows = []

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Join the rows of all devices into `results`, and log the metrics."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """As after validation."""
        self._finish("test")

    def _finish(self, split: str) -> None:
        index, rows = _in_order(_from_all_ranks([_on_cpu(*part) for part in self._rows]))
        metrics, undefined = self.aggregate(rows)
        counted = rows.get("n_annotated", torch.ones(len(index))) > 0
        if not counted.all():
            undefined["loss"] = int((~counted).sum())
        metrics = {"loss": rows["loss"][counted].mean().item(), **metrics}
        self.results = EvaluationResult(split, metrics, undefined, index, rows, self.details(rows))
        self._rows = []
        # All ranks hold all rows, so each logs the same number.
        self.log_dict({f"{split}/{name}": value for name, value in metrics.items()}, rank_zero_only=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what `__init__` needs besides the configuration; plain numbers, loadable with `weights_only=True`."""
        checkpoint["data"] = {name: getattr(self, name) for name in DATA_ATTRIBUTES if hasattr(self, name)}
        checkpoint["epoch_loss"] = self._epoch_loss.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The losses so far of an epoch that goes on; on the other devices it goes on from nothing."""
        if self.global_rank == 0 and (state := checkpoint.get("epoch_loss")):
            self._epoch_loss.load_state_dict(state)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """What the optimizer learns, with rates by layer where fine-tuning asks for them.

        Args:
            lr: Of the head.
        """
        if self.finetuning:
            groups = self.finetuning.groups(self.net, lr)
            inside = {id(p) for p in self.net.parameters()}
            groups[-1]["params"] += [p for p in self.parameters() if p.requires_grad and id(p) not in inside]
            return groups
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, and the schedule of its learning rate, of `optimizer` and `lr_scheduler`."""
        return build_optimizers(self, self.optimizer, self.lr_scheduler)

    # Networks that are fitted, not trained ----------------------------------------------------------------------------

    def fit_baseline(self, batches: Iterator[Batch]) -> None:
        """Fit a baseline, whose `fit` takes an iterator of (normalised input, encoded target) batches.

        One that has an attribute `classes` of 0 is told their number first.
        """
        if getattr(self.net, "classes", None) == 0:
            self.net.classes = self.n_classes  # type: ignore[assignment]
        with torch.no_grad():
            self.net.fit((self.network_input(batch), self.make_target(batch)) for batch in batches)  # type: ignore[operator]


def _several_outputs(net: nn.Module, output: Any) -> str:
    keys = f" with the keys {', '.join(map(str, output))}" if isinstance(output, dict) else ""
    which = f'["{next(iter(output))}"]' if isinstance(output, dict) and output else "[0]"
    return (
        f"the network {type(net).__name__} returns a {type(output).__name__}{keys}; a task needs one tensor.\n"
        f"Write a module around it whose forward returns the tensor to train on, as in  return self.net(x){which}\n"
        "and name that module in net.class_path"
    )


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _on_cpu(index: Tensor, rows: Rows) -> tuple[Tensor, Rows]:
    """What a validation step left on the device, in float64 (which not every device has)."""
    return index.cpu(), {name: column.cpu().double() for name, column in rows.items()}


def _from_all_ranks(parts: list[tuple[Tensor, Rows]]) -> list[tuple[Tensor, Rows]]:
    if not _distributed():
        return parts
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, parts)
    return [part for rank in gathered for part in rank]


def _in_order(parts: list[tuple[Tensor, Rows]]) -> tuple[Tensor, Rows]:
    index = torch.cat([part[0] for part in parts])
    order = index.argsort()
    assert len(index.unique()) == len(index), "a sample was evaluated twice: metrics would be wrong"
    rows = {name: torch.cat([part[1][name] for part in parts])[order] for name in parts[0][1]}
    return index[order], rows
