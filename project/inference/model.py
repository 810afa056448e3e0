"""A trained run as something to call: raw image in, prediction out, whatever its size."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from torch import Tensor

from project.data.statistics import image_statistics
from project.errors import UserError
from project.inference.tiling import PeakBytes, rounded_up, tiled
from project.models.checkpoint_files import best_checkpoint
from project.models.downloads import without_downloads
from project.provenance import file_hash
from project.runs import untrusted as trust
from project.runs.run_folder import Run, find_run
from project.tasks.base import DATA_ATTRIBUTES, Task
from project.training.batch_size import free_memory
from project.training.evaluate import ONE_PROCESS, load_weights, read_checkpoint
from project.training.lightning_cli import ExperimentCLI
from project.training.logs import quiet_lightning

USABLE = 0.4  # of the free memory: kernels take some that nothing counts
SMALL = 256  # side of the image on which memory is measured; up to twice that, images are never tiled
LARGEST, SMALLEST = 2048, 64  # sides of the tiles that are chosen


@dataclass(frozen=True)
class Estimate:
    """What the runs say of an image.

    Attributes:
        values: Prediction in the target's units, (C', H, W) float32, or probabilities (K, H, W) or (K,); the mean
            where there are several runs.
        spread: The same shape: standard deviation over the runs, with n - 1; None for a single one.
    """

    values: np.ndarray
    spread: np.ndarray | None = None


def load(runs: str | Path | Sequence[str | Path], accelerator: str | None = None, trust: bool = False) -> "Model":
    """Load the best weights of a run, or of several that are to be averaged.

    The run folder is enough: neither the data nor a network connection is needed.

    Args:
        runs: A run folder, or the name of an experiment (its latest run); or several.
        accelerator: "cpu" or "gpu"; by default what the run says, which mostly is the GPU if there is one.
        trust: Whether configurations may name any code; see `project.runs.untrusted`.

    Raises:
        UserError: There is no such run or checkpoint, or the runs do not predict the same thing.
    """
    names = [runs] if isinstance(runs, str | Path) else list(runs)
    if not names:
        raise UserError("name at least one run")
    return Model([_member(find_run(str(name)), accelerator, trust) for name in names])


class Model:
    """Predicts from raw images, by one run or as the mean of several.

    Attributes:
        task: The task of the first run.
        dtype: Of the raw images.
        channels: Names of their channels.
        dense: Whether there is a prediction for each pixel; else for the image as a whole.
    """

    def __init__(self, members: "list[Member]") -> None:
        self.members, self.task = members, members[0].task
        first = members[0]
        for other in members[1:]:
            for what in ("kind", "image", "target", "classes", "background"):
                if (a := getattr(first, what)) != (b := getattr(other, what)):
                    raise UserError(
                        f"{first.run.name} and {other.run.name} cannot be averaged, their {what} differ: {a} and {b}"
                    )
        statistics = self.task.statistics["image"]
        self.dtype = np.dtype(statistics[0]["dtype"])
        self.channels = channel_names(self.task.channels.get("image"), len(statistics))
        self.dense = self.task.is_dense

    def predict(self, image: np.ndarray, tile: int | None = None, tta: bool = False) -> np.ndarray:
        """The prediction for one raw image, as the target looks.

        Args:
            image: (C, H, W) or, of one channel, (H, W); raw values in the dtype of the training images, any size.
            tile: Side of tiles in pixels; by default images are cut only when memory asks for it.
            tta: Whether to average over the eight symmetries of the square.

        Returns:
            Translation: (C', H, W), or (H, W) for one channel from (H, W), in the target's units and dtype (integers
            rounded). Segmentation: class numbers (H, W). Classification: probabilities (K,) float32.

        Raises:
            UserError: The image is not of the kind that the run was trained on, or memory is too short.
        """
        values = self.estimate(image, tile, tta).values
        values = self.task.prediction_files(values, rounded=True).get("", values)
        plane = np.ndim(image) == 2 and self.task.target_kind == "image" and len(values) == 1
        return values[0] if plane else values

    def objects(self, image: np.ndarray, tile: int | None = None, tta: bool = False) -> np.ndarray:
        """Object numbers (H, W) for one raw image, 0 is background; for segmentation; see `predict`."""
        files = self.task.prediction_files(self.estimate(image, tile, tta).values)
        if "_objects" not in files:
            raise UserError(f"{self.members[0].run.name} predicts no objects; set `objects` of its task")
        return files["_objects"]

    def estimate(self, image: np.ndarray, tile: int | None = None, tta: bool = False) -> Estimate:
        """The same as float32, without rounding, and how far the runs differ.

        Args:
            image: See `predict`.
            tile: The same.
            tta: The same.

        Raises:
            UserError: As `predict`.
        """
        raw = self.checked(image)
        if tile is not None and (not self.dense or tile < 1):
            raise UserError(
                f"tile is {tile}: " + ("take a number of pixels" if self.dense else "classes need it whole")
            )
        mean: np.ndarray | None = None
        squares = np.zeros(())
        for n, member in enumerate(self.members, 1):
            values = _over_symmetries(lambda x, m=member: m(x, tile, self.dense), raw, self.dense, tta)  # type: ignore[misc]
            if mean is None:
                mean, squares = values, np.zeros_like(values) if len(self.members) > 1 else squares
            else:  # Welford (1962)
                change = values - mean
                mean += change / n
                squares += change * (values - mean)
        assert mean is not None
        n = len(self.members)
        return Estimate(mean, np.sqrt(squares / (n - 1)) if n > 1 else None)

    def checked(self, image: np.ndarray) -> np.ndarray:
        """The image as (C, H, W), if it is of the kind that the run was trained on.

        Raises:
            UserError: It is not.
        """
        array = np.asarray(image)
        array = array[None] if array.ndim == 2 else array
        if array.ndim != 3 or 0 in array.shape:
            raise UserError(f"an image has the shape (C, H, W) or (H, W), not {np.shape(image)}")
        self.check_kind(len(array), array.dtype)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError("the image holds NaN or infinities; put a number in their place")
        return array

    def check_kind(self, n_channels: int, dtype: np.dtype) -> None:
        """Refuse another number of channels, or another dtype."""
        if n_channels != len(self.channels) or np.dtype(dtype).newbyteorder("=") != self.dtype:
            raise UserError(
                f"{n_channels} channel(s) of {np.dtype(dtype).name}, but {self.members[0].run.name} was trained on raw "
                f"images of {len(self.channels)} ({', '.join(self.channels)}) of {self.dtype.name}"
            )

    def unlike(self, image: np.ndarray) -> str | None:
        """Where the values of a raw image are, if most of a channel's lie where hardly any training pixel does.

        Such as those of another camera, or with another offset. Normalisations by each image take them as they come;
        then there is nothing to tell.

        Args:
            image: See `predict`.
        """
        if self.task.normalize_input.by_image:
            return None
        image = self.checked(image)
        for channel, name, known in zip(image, self.channels, self.task.statistics["image"], strict=True):
            low, high = known["percentiles"]["0.1"], known["percentiles"]["99.9"]
            if np.mean((channel < low) | (channel > high)) > 0.5:
                return f"{name} from {channel.min():g} to {channel.max():g}, in training {low:g} to {high:g}"
        return None

    @property
    def origin(self) -> dict[str, Any]:
        """What tells one model from another, as plain JSON: name, commit and weights of each run."""
        return {"runs": [member.origin for member in self.members]}


class Member:
    """One run of a model.

    Args:
        run: Its folder.
        task: With its weights.
        device: Where it works.
        precision: In which, as in the evaluation.
        checkpoint: The file of the weights.
    """

    def __init__(self, run: Run, task: Task, device: torch.device, precision: Precision, checkpoint: Path) -> None:
        self.run, self.device, self.precision = run, device, precision
        precision.convert_module(task)
        self.task: Task = task.to(device).eval()
        provenance = run.read_provenance()
        self.origin = {
            "name": run.name,
            "commit": provenance.commit,
            "checkpoint": checkpoint.name,
            "weights": file_hash(checkpoint),
        }
        # What has to agree between members.
        self.kind, self.classes = type(task).__name__, task.classes
        self.background = getattr(task, "background", None)
        self.image, self.target = (
            [
                (c["dtype"], name)
                for c, name in zip(found, channel_names(task.channels.get(role), len(found)), strict=True)
            ]
            for role in ("image", "target")
            for found in [task.statistics.get(role, [])]
        )
        self._bytes: float | None = None  # per pixel, of a forward pass
        self._most = math.inf  # pixels that fit at once, as far as is known

    def __call__(self, raw: np.ndarray, tile: int | None, dense: bool) -> np.ndarray:
        """Raw (C, H, W) -> values in the target's units (C', H, W), or (K,), float32."""
        x = torch.from_numpy(np.require(raw, raw.dtype.newbyteorder("="), ["C", "W"]))[None]
        with torch.inference_mode(), self.precision.forward_context():
            if tile is not None:
                return self._in_tiles(x, tile)
            n_pixels = x.shape[-2] * x.shape[-1]
            while True:
                side = self._side(x) if dense else None
                try:
                    return self._whole(x) if side is None else self._in_tiles(x, side)
                except (RuntimeError, MemoryError) as error:
                    if not (isinstance(error, MemoryError) or is_oom_error(error)):
                        raise
                    tried = n_pixels if side is None else side**2
                    self._most = tried / 4
                    if not dense or self._most < self._smallest**2:
                        raise UserError(
                            f"memory is too short for {math.isqrt(tried)} x {math.isqrt(tried)} pixels"
                        ) from error
                garbage_collection_cuda()

    def _side(self, x: Tensor) -> int | None:
        """Side of the tiles that fit into memory, or None where the whole image does."""
        n_pixels, multiple = x.shape[-2] * x.shape[-1], self.task.size_divisor
        most = self._most
        if n_pixels > (2 * SMALL) ** 2:
            most = min(most, USABLE * _free(self.device) / self._bytes_per_pixel(x))
        if n_pixels <= most:
            return None
        return max(min(math.isqrt(int(most)), LARGEST) // multiple * multiple, self._smallest)

    @property
    def _smallest(self) -> int:
        """Side of the smallest tiles that still overlap."""
        return max(rounded_up(SMALLEST, self.task.size_divisor), 2 * self.task.size_divisor)

    def _bytes_per_pixel(self, x: Tensor) -> float:
        if self._bytes is None:
            part = x[..., :SMALL, :SMALL]
            with suppress(RuntimeError, NotImplementedError, TypeError), PeakBytes() as counted:
                self._whole(part)  # not every network lets itself be looked into; tiles are then halved where needed
            self._bytes = max(counted.peak / (part.shape[-2] * part.shape[-1]), 1.0)
        return self._bytes

    def _whole(self, x: Tensor) -> np.ndarray:
        return np.asarray(self._predicted(x, self._levels(x))[0].float().cpu().numpy())

    def _in_tiles(self, x: Tensor, tile: int) -> np.ndarray:
        """Each tile is normalised as part of the whole image."""
        task = self.task
        if type(task).normalize is Task.normalize:
            levels = self._levels(x)
            found = tiled(lambda part: self._predicted(part, levels), x, tile, multiple=task.size_divisor)
        else:
            normalized = task.normalize(self._input(x)).cpu()
            found = tiled(
                lambda x: task.decode_output(task.apply_net(x.to(self.device))),
                normalized,
                tile,
                multiple=task.size_divisor,
            )
        return found[0].numpy()

    def _predicted(self, x: Tensor, levels: Tensor | None) -> Tensor:
        if levels is None:
            return torch.as_tensor(self.task(self._input(x)))
        return self.task.decode_output(
            self.task.apply_net(self.task.network_input({"image": self._input(x), "image_statistics": levels}))
        )

    def _levels(self, x: Tensor) -> Tensor | None:
        """Of the whole image, by the function that `make data` stores them with; None where they are not asked for."""
        by_image = self.task.normalize_input.by_image
        return torch.from_numpy(image_statistics(x[0].numpy()))[None].to(self.device) if by_image else None

    def _input(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.precision.convert_input(x.to(self.device)))


def _member(run: Run, accelerator: str | None, trusted: bool) -> Member:
    path = best_checkpoint(run.folder)
    # Networks are drawn before they get their weights; the caller's random numbers shall go on as if nothing had been.
    with (
        trust.evaluation_config(run, [], trusted) as config,
        quiet_lightning(logging.ERROR),
        torch.random.fork_rng(devices=[]),
    ):
        checkpoint = read_checkpoint(path)
        typed = [f"--trainer.accelerator={accelerator}"] if accelerator else []
        cli = _Built([*_arguments(run, config, checkpoint), *typed], run)
        load_weights(cli, checkpoint, path)
    if getattr(cli.model.net, "oracle", False):
        raise UserError(f"{run.name} is an oracle, which has to see the target: it cannot predict")
    strategy = cli.trainer.strategy
    return Member(run, cli.model, strategy.root_device, strategy.precision_plugin, path)


def _arguments(run: Run, config: dict[str, Any], checkpoint: dict[str, Any]) -> list[str]:
    """The run's task and way of computing, with what its checkpoint knows of the data."""
    known = checkpoint.get("data")
    if not isinstance(known, dict) or not isinstance(known.get("statistics"), dict):
        raise UserError(f'"{run.folder}": the checkpoint does not hold the statistics of its data; train again')
    model = config.get("model")
    if not isinstance(model, dict):
        raise UserError(f'"{run.config}" names no model; copy the run folder again')
    classes = known.get("classes")
    if "background" not in known and isinstance(classes, dict) and classes.get("mask"):
        # An earlier version, to which class 0 was background.
        known = known | {"background": classes["mask"][0], "has_instances": True}
    model = without_downloads(model)
    if isinstance(model.get("init_args"), dict) and "compile" in model["init_args"]:
        model["init_args"]["compile"] = False  # which would take a minute for each new size
    content = {
        "model": model,
        "trainer": config["trainer"],
        "data": {name: known[name] for name in DATA_ATTRIBUTES if name in known},
    }
    return [f"--config={json.dumps(content)}", "--seed_everything=false", *ONE_PROCESS, "--trainer.logger=false"]


class _Known(LightningDataModule):
    """What a task has to know of its data, from the checkpoint; the data itself need not be there."""

    def __init__(
        self,
        statistics: dict[str, Any],
        channels: dict[str, Any] | None = None,
        classes: dict[str, Any] | None = None,
        ignore_index: int | None = None,
        multi_label: bool = False,
        background: str | None = None,
        positive: str | None = None,
        has_instances: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.statistics, self.channels, self.classes = statistics, channels or {}, classes or {}
        self.ignore_index, self.multi_label = ignore_index, multi_label
        self.background, self.positive, self.has_instances = background, positive, has_instances


class _Built(ExperimentCLI):
    """The task and the trainer's device and precision, without data."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """As everywhere, with another datamodule."""
        self._datamodule_class = _Known
        super().add_core_arguments_to_parser(parser)


def _free(device: torch.device) -> float:
    """Bytes that a forward pass may take."""
    if device.type != "cuda":
        return free_memory()
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + cached)


def _over_symmetries(
    function: Callable[[np.ndarray], np.ndarray], raw: np.ndarray, dense: bool, on: bool
) -> np.ndarray:
    """The mean over the eight symmetries of the square, each prediction turned back."""
    if not on:
        return function(raw)
    total: np.ndarray | None = None
    for turns in range(4):
        for mirrored in (False, True):
            seen = np.rot90(raw[..., ::-1] if mirrored else raw, turns, (1, 2))
            values = function(seen)
            if dense:
                values = np.rot90(values, -turns, (1, 2))
                values = values[..., ::-1] if mirrored else values
            total = values.copy() if total is None else total + values
    assert total is not None
    return total / np.float32(8)


def channel_names(names: list[str] | None, n: int) -> list[str]:
    """The names of `n` channels, numbers where there are none."""
    return list(names) if names and len(names) == n else [str(i) for i in range(n)]
