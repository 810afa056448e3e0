"""A trained run as something to call: raw image in, prediction out, whatever its size."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from project.errors import UserError
from project.inference.member import TILE, Member, channel_names, load_member
from project.inference.tiling import instance_norms
from project.metrics.conformal import Calibration
from project.runs.find_runs import find_run

NOT_VALID = "unlike the training images: intervals and sets need not contain 90 %"
LARGE = 2048  # pixels: images with a longer side are predicted in tiles by default


@dataclass(frozen=True)
class Estimate:
    """Prediction for an image, before rounding."""

    values: np.ndarray  # float32 (C', H, W) in the target's units, or probabilities (K, H, W) or (K,); mean of the runs
    spread: np.ndarray | None = None  # of the same shape: standard deviation over several runs, with n - 1


def load(runs: str | Path | Sequence[str | Path], accelerator: str | None = None, trust: bool = False) -> "Model":
    """Load the best weights of a run, or of several whose predictions are averaged.

    The run folder is enough: neither the data nor a network connection is needed.

    Args:
        runs: A run folder, or the name of an experiment (its latest run); or several.
        accelerator: "cpu" or "gpu"; by default as the run says, usually the GPU if there is one.
        trust: Whether configurations may name any code; see `project.runs.untrusted`.

    Raises:
        UserError: There is no such run or checkpoint, or the runs do not predict the same thing.
    """
    names = [runs] if isinstance(runs, str | Path) else list(runs)
    if not names:
        raise UserError("name at least one run")
    return Model([load_member(find_run(str(name)), accelerator, trust) for name in names])


class Model:
    """Predicts from raw images, by one run or as the mean of several."""

    def __init__(self, members: list[Member]) -> None:
        self.members, self.task = members, members[0].task
        first = members[0]
        for other in members[1:]:
            for name, value in first.signature.items():
                if value != other.signature[name]:
                    raise UserError(
                        f"{first.run.name} and {other.run.name} cannot be averaged, their {name} differ: "
                        f"{value} and {other.signature[name]}"
                    )
        statistics = self.task.statistics["image"]
        self.dtype = np.dtype(statistics[0]["dtype"])
        self.channels = channel_names(self.task.channels.get("image"), len(statistics))
        self.dense = self.task.is_dense  # whether there is a prediction for each pixel

    @property
    def prediction_range(self) -> float:
        """Width of the range of predictions, which differences are compared with; 1 for probabilities."""
        role = {"image": "target", "value": "value"}.get(self.task.target_kind or "", "")
        columns = self.task.statistics.get(role, [])
        return max((column["max"] - column["min"] for column in columns), default=1.0) or 1.0

    @property
    def origin(self) -> dict[str, Any]:
        """What distinguishes models, as plain JSON: name, commit and weights of each run."""
        return {"runs": [member.origin for member in self.members]}

    def predict(self, image: np.ndarray, tile: int | None = None, tta: bool = False) -> np.ndarray:
        """The prediction for one raw image, in the form of the target.

        Args:
            image: (C, H, W) or, of one channel, (H, W); raw values in the dtype of the training images, any size.
            tile: Side of tiles in pixels; by default 1024 for images with more than 2048 pixels on a side
                (4096 with instance norms).
            tta: Whether to average over the eight symmetries of the square.

        Returns:
            Translation: (C', H, W), or (H, W) for one channel from (H, W), in the target's units and dtype (integers
            rounded). Segmentation: class numbers (H, W). Classification: probabilities (K,) float32.

        Raises:
            UserError: The image is not of the kind that the run was trained on, or there is not enough memory.
        """
        values = self.estimate(image, tile, tta).values
        values = self.task.prediction_files(values, rounded=True).get("", values)
        is_plane = np.ndim(image) == 2 and self.task.target_kind == "image" and len(values) == 1
        return values[0] if is_plane else values

    def objects(self, image: np.ndarray, tile: int | None = None, tta: bool = False) -> np.ndarray:
        """Object numbers (H, W) for one raw image, 0 is background; for segmentation; see `predict`."""
        files = self.task.prediction_files(self.estimate(image, tile, tta).values)
        if "_objects" not in files:
            raise UserError(f"{self.members[0].run.name} predicts no objects; set `objects` of its task")
        return files["_objects"]

    @cached_property
    def calibration(self) -> Calibration | None:
        """Of intervals or prediction sets, from the validation of the run; None for several runs."""
        n_parts = 1 if self.task.target_kind == "label" else len(self.task.parts)
        return self.members[0].run.read_calibration(n_parts) if len(self.members) == 1 else None

    def interval(self, image: np.ndarray, tile: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Low and high ends of the intervals that contain 90 % of the true values; translation and regression.

        Calibrated on the validation split, see `project.metrics.conformal`, and valid for images like those. Arguments
        and form are those of `predict`; there is a warning for values unlike the training images.

        Raises:
            UserError: As for `predict`; or the run is not calibrated, or there are several.
        """
        low, high = self.interval_of(self._calibrated_values(image, tile, "image", "value"))
        is_plane = np.ndim(image) == 2 and self.dense and len(low) == 1
        return (low[0], high[0]) if is_plane else (low, high)

    def prediction_set(self, image: np.ndarray) -> list[str]:
        """Names of the classes among which the true one is in 90 % of the cases; classification; see `interval`."""
        return self.set_of(self._calibrated_values(image, None, "label"))

    def _calibrated_values(self, image: np.ndarray, tile: int | None, *kinds: str) -> np.ndarray:
        """The unrounded prediction, for which there are intervals or sets."""
        self.check_calibration(*kinds)
        if shift := self.describe_shift(image):
            warnings.warn(f"{NOT_VALID}: {shift}", stacklevel=3)
        return self.estimate(image, tile).values

    def check_calibration(self, *kinds: str, tta: bool = False) -> None:
        """Raise a UserError if the run has no intervals or sets, for predictions of these kinds of target."""
        task, run = self.task, self.members[0].run
        if task.target_kind not in kinds or not task.has_errors:
            raise UserError("intervals are for translation and regression, sets for images of one class each")
        if tta or len(self.members) > 1:
            raise UserError("intervals and sets are calibrated for one run without test-time augmentation")
        if not self.calibration:
            raise UserError(f"intervals and sets of {run.name} are not calibrated: run `project eval {run.quoted}`")

    def interval_of(self, values: np.ndarray, rounded: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Interval of an unrounded prediction; `rounded`, outwards, as for `prediction_files` of the task."""
        assert self.calibration, "see check_calibration"
        low, high = self.calibration.interval(values)
        if rounded and self.dense and self.task.statistics["target"][0]["dtype"].startswith("uint"):
            low, high = (self.task.prediction_files(end, rounded=True)[""] for end in (np.floor(low), np.ceil(high)))
        return low, high

    def set_of(self, probabilities: np.ndarray) -> list[str]:
        """Prediction set of the probabilities (K,) of an image."""
        assert self.calibration, "see check_calibration"
        return [self.task.parts[k] for k in np.flatnonzero(self.calibration.contains(probabilities)).tolist()]

    def estimate(self, image: np.ndarray, tile: int | None = None, tta: bool = False) -> Estimate:
        """The prediction as float32 without rounding, and how far the runs differ; arguments as for `predict`."""
        raw = self.checked(image)
        if tile is not None and (tile < 1 or not self.dense):
            raise UserError(f"tile is {tile}: take a number of pixels, and none where an image has one prediction")
        # Tiles are slow where each instance norm is measured on the whole image first.
        large = LARGE * 2 if any(instance_norms(member.task.net) for member in self.members) else LARGE
        if tile is None and self.dense and max(raw.shape[1:]) > large:
            tile = TILE
        mean: np.ndarray = np.zeros((), np.float32)
        squares: np.ndarray = np.zeros((), np.float32)
        for n, member in enumerate(self.members, 1):  # Welford (1962): two arrays, however many runs
            values = _mean_over_symmetries(member, raw, tile, self.dense) if tta else member(raw, tile)
            change = values - mean
            mean = mean + change / n if n > 1 else values
            squares = squares + change * (values - mean)
        n = len(self.members)
        return Estimate(mean, np.sqrt(squares / (n - 1), dtype=np.float32) if n > 1 else None)

    def checked(self, image: np.ndarray) -> np.ndarray:
        """The image as (C, H, W); UserError if it is not of the kind that the run was trained on."""
        array = np.asarray(image)
        array = array[None] if array.ndim == 2 else array
        if array.ndim != 3 or 0 in array.shape:
            raise UserError(f"an image has the shape (C, H, W) or (H, W), not {np.shape(image)}")
        self.check_kind(len(array), array.dtype)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError("the image contains NaN or infinite values; replace them by a number")
        return array

    def check_kind(self, n_channels: int, dtype: np.dtype) -> None:
        """Refuse another number of channels, or another dtype."""
        if n_channels != len(self.channels) or np.dtype(dtype).newbyteorder("=") != self.dtype:
            raise UserError(
                f"{n_channels} channel(s) of {np.dtype(dtype).name}, but {self.members[0].run.name} was trained on raw "
                f"images of {len(self.channels)} ({', '.join(self.channels)}) of {self.dtype.name}"
            )

    def describe_shift(self, image: np.ndarray) -> str | None:
        """Range of a channel of which most values are outside the training images' 0.1 to 99.9 percentile, if any.

        Such as from another camera, or with another offset. Normalization by each image takes any range.
        """
        if self.task.normalize_input.by_image:
            return None
        for channel, name, known in zip(self.checked(image), self.channels, self.task.statistics["image"], strict=True):
            low, high = known["percentiles"]["0.1"], known["percentiles"]["99.9"]
            if np.mean((channel < low) | (channel > high)) > 0.5:
                return f"{name} from {channel.min():g} to {channel.max():g}, in training {low:g} to {high:g}"
        return None


def _mean_over_symmetries(member: Member, raw: np.ndarray, tile: int | None, dense: bool) -> np.ndarray:
    """The mean over the eight symmetries of the square, each prediction turned back."""
    total: Any = 0
    for turns in range(4):
        for mirrored in (False, True):
            values = member(np.rot90(raw[..., ::-1] if mirrored else raw, turns, (1, 2)), tile)
            if dense:
                values = np.rot90(values, -turns, (1, 2))
                values = values[..., ::-1] if mirrored else values
            total = total + values
    return np.asarray(total / np.float32(8))
