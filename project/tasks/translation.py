"""Image translation: predict one image from another, such as fluorescence from bright field."""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from project.data.statistics import value_range
from project.errors import UserError
from project.losses import fit_to_data
from project.metrics.image import MOMENTS, image_scores, pooled_scores
from project.tasks.base import Batch, Rows, Task
from project.tasks.figures import draw_translation
from project.transforms.normalize import Method, Normalize

SCORES = ("mse", "mae", "r2", "pearson", "psnr", "ssim")


class TranslationTask(Task):
    """Predict `target` from `image`, with a loss on normalised values and scores in the target's units.

    PSNR, SSIM and `SSIMLoss` refer to the range of the training targets from their 0.1 to their 99.9 percentile
    (`project.data.statistics.value_range`): with the extremes one hot pixel would decide all scores.

    Args:
        net: Maps normalised (B, C, H, W) to (B, C', H, W), unbounded.
        loss: Of normalised prediction and target; MSE by default.
        target_normalization: See `project.transforms.normalize.Normalize`; no "image_" one: not invertible.
        options: See `project.tasks.base.Task`.
    """

    kind = "translation"
    target_kind = "image"
    inputs: ClassVar[tuple[str, ...]] = ("image", "target")
    main_metrics: ClassVar[dict[str, Literal["min", "max", "zero"]]] = {
        "mse": "min",
        "mae": "min",
        "r2": "max",
        "pearson": "max",
        "r2_pooled": "max",
        "pearson_pooled": "max",
        "psnr": "max",
        "ssim": "max",
    }
    low: Tensor
    high: Tensor

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module | None = None,
        target_normalization: Method = "mean_std",
        **options: Any,
    ) -> None:
        super().__init__(net, loss or nn.MSELoss(), **options)
        self.normalize_target = Normalize(self.statistics.get("target"), target_normalization)
        # Said now rather than after the first epoch.
        self.normalize_target.inverse(self.normalize_target.offset[None])
        ranges = [value_range(channel) for channel in self.statistics["target"]]
        for name in ("low", "high"):
            values = [getattr(each, name) for each in ranges]
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        low, high = (self.normalize_target(x[None, :, None, None]).flatten() for x in (self.low, self.high))
        fit_to_data(self.loss, value_range=high - low, value_low=low)

    def decode_output(self, output: Tensor) -> Tensor:
        """(B, C', H, W) normalised -> the target's units.

        Raises:
            UserError: The network has another number of output channels; they would be repeated without a word.
        """
        if output.shape[1] != len(self.low):
            raise UserError(f"the network gives {output.shape[1]} channels, the target has {len(self.low)}")
        return self.normalize_target.inverse(output)

    def make_target(self, batch: Batch) -> Tensor:
        """The normalised target, (B, C', H, W)."""
        return self.normalize_target(batch["target"])

    def score(self, prediction: Tensor, batch: Batch) -> Rows:
        """Scores and moments per sample; with several target channels one column per channel, `mse/<channel>`."""
        scores = image_scores(prediction, batch["target"].float(), self.low, self.high)
        return {f"{name}{tag}": column[:, c] for name, column in scores.items() for c, tag in enumerate(self._tags())}

    def aggregate(self, rows: Rows) -> tuple[dict[str, float], dict[str, int]]:
        """Means over the images for which a score is defined, and `_pooled` scores over all pixels.

        With several target channels each has its metrics. The plain name is the mean over channels; of a `_pooled`
        score it is over the pixels of all channels, as if they were one image.
        """
        tags = self._tags()
        metrics: dict[str, float] = {}
        undefined: dict[str, int] = {}
        moments = {name: torch.stack([rows[f"{name}{tag}"] for tag in tags], 1) for name in MOMENTS}
        found = {name: torch.stack([rows[f"{name}{tag}"].nanmean() for tag in tags]) for name in SCORES}
        pooled = pooled_scores(moments)
        over_channels = pooled_scores({name: values.reshape(-1, 1) for name, values in moments.items()})
        for name, values in (found | pooled).items():
            named = [(f"{name}{tag}", value) for tag, value in zip(tags, values.tolist(), strict=True)]
            if len(tags) > 1:
                named.insert(0, (name, over_channels.get(name, values.mean()).item()))
            metrics |= {key: value for key, value in named if value == value}
        for name in SCORES:
            count = sum(int(rows[f"{name}{tag}"].isnan().sum()) for tag in tags)
            undefined |= {name: count} if count else {}
        return metrics, undefined

    def draw(self, samples: list[dict[str, Any]]) -> Figure:
        """Input, target, prediction and error of each sample."""
        return draw_translation(samples, self.channels.get("target"))

    @property
    def prediction_range(self) -> float:
        """Width of the range of the training targets, of the widest channel."""
        return max((channel["max"] - channel["min"] for channel in self.statistics["target"]), default=0.0) or 1.0

    def prediction_files(
        self, prediction: np.ndarray, spread: np.ndarray | None = None, rounded: bool = False
    ) -> dict[str, np.ndarray]:
        """The predicted image."""
        dtype = np.dtype(self.statistics["target"][0]["dtype"])
        image = round_to_dtype(prediction, dtype) if rounded else prediction
        return {"": image, **({} if spread is None else {"_spread": spread})}

    def _tags(self) -> list[str]:
        n, names = len(self.low), self.channels.get("target", [])
        names = names if len(names) == n else [str(i) for i in range(n)]
        return [""] if n == 1 else [f"/{name}" for name in names]


def round_to_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values in the units of a dtype as that dtype: rounded and clipped to its range where it is an integer one."""
    if dtype.kind != "u":
        return values.astype(dtype, copy=False)
    range_ = np.iinfo(dtype)
    return np.rint(values).clip(range_.min, range_.max).astype(dtype)
