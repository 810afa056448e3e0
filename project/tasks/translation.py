"""Image translation: predict one image from another, such as fluorescence from bright field."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from project.data.batch import Tensors
from project.data.dataset_facts import DatasetFacts
from project.data.statistics import value_range
from project.errors import UserError
from project.losses import fit_to_data
from project.metrics.base import EvaluationResult
from project.metrics.conformal import N_PIXELS, Errors
from project.metrics.image import ImageMetrics
from project.tasks.base import Task
from project.tasks.figures import draw_translation
from project.transforms.normalize import Method, Normalize

LOG_2 = 0.6931  # in the logarithmic part of asinh, a factor of 2


class TranslationTask(Task):
    """Predict `target` from `image`, with a loss on normalized values and scores in the target's units.

    PSNR, SSIM and `SSIMLoss` refer to the range of the training targets from their 0.1 to their 99.9 percentile
    (`project.data.statistics.value_range`): with the extremes one hot pixel would decide all scores.

    Args:
        net: Maps normalized (B, C, H, W) to (B, C', H, W), unbounded.
        loss: Of normalized prediction and target; MSE by default.
        target_normalization: See `project.transforms.normalize.Normalize`; no "image_" one: not invertible.
        options: See `project.tasks.base.Task`.
    """

    kind = "translation"
    target_kind = "image"
    inputs = ("image", "target")
    default_metrics = (ImageMetrics,)
    low: Tensor
    high: Tensor
    bounds: Tensor

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module | None = None,
        target_normalization: Method = "mean_std",
        **options: Any,
    ) -> None:
        super().__init__(net, loss or nn.MSELoss(), **options)
        if not self.statistics.get("target"):
            raise UserError(
                "the dataset has no target images; name them as `target` in its data config, and prepare it"
            )
        self.normalize_target = Normalize(self.statistics["target"], target_normalization)
        self.normalize_target.inverse(torch.zeros(1))  # fails now rather than after the first epoch
        ranges = [value_range(channel) for channel in self.statistics["target"]]
        self.register_buffer("low", torch.tensor([r.low for r in ranges], dtype=torch.float32))
        self.register_buffer("high", torch.tensor([r.high for r in ranges], dtype=torch.float32))
        names = self.channels.get("target", [])
        self.parts = names if len(names) == len(ranges) else [str(c) for c in range(len(ranges))]
        low, high = (self.normalize_target(x[None, :, None, None]).flatten() for x in (self.low, self.high))
        fit_to_data(self.loss, value_range=(low, high))
        ends = torch.tensor([[channel[name] for channel in self.statistics["target"]] for name in ("min", "max")])
        bounds = self.normalize_target(ends[..., None, None]) + torch.tensor([-LOG_2, LOG_2]).view(2, 1, 1, 1)
        self.register_buffer("bounds", bounds, persistent=False)

    @classmethod
    def network_channels(cls, data: DatasetFacts, options: dict[str, Any]) -> tuple[int, int | None]:
        return data.n_channels["image"], data.n_channels["target"]

    def decode_output(self, output: Tensor) -> Tensor:
        """(B, C', H, W) normalized -> the target's units. Other numbers of outputs are refused."""
        self.check_output(output, self.parts)
        if self.normalize_target.method == "asinh":
            # sinh would turn a small excess into a factor: at most twice the extremes of the training targets.
            output = output.clamp(*self.bounds)
        return self.normalize_target.inverse(output)

    def make_target(self, batch: Tensors) -> Tensor:
        """The normalized target, (B, C', H, W)."""
        return self.normalize_target(batch["target"])

    def sample_pixels(self, prediction: Tensor, batch: Tensors) -> Tensor:
        """(B, S, C', 2) in the target's units, at positions that only depend on the image's index."""
        p, t = prediction.flatten(2), batch["target"].to(prediction).flatten(2)
        # Evenly spread by the golden ratio, in integers: no random numbers, and nothing waits for the device.
        numbers = batch["index"][:, None] * N_PIXELS + torch.arange(N_PIXELS, device=p.device)
        positions = (numbers * 2654435769 % 2**32) * p.shape[2] // 2**32
        positions = positions[:, None].expand(-1, p.shape[1], -1)
        return torch.stack([p.gather(2, positions), t.gather(2, positions)], -1).transpose(1, 2)

    def errors(self, results: EvaluationResult) -> Errors | None:
        """Of the sampled pixels."""
        if results.pixels is None:
            return None
        predicted, true = results.pixels.unbind(-1)
        return Errors(predicted.numpy(), (predicted - true).abs().numpy(), self.tags)

    def draw(self, samples: list[dict[str, Any]]) -> Figure:
        return draw_translation(samples, self.channels.get("target"))

    def prediction_files(
        self, prediction: np.ndarray, spread: np.ndarray | None = None, rounded: bool = False
    ) -> dict[str, np.ndarray]:
        dtype = np.dtype(self.statistics["target"][0]["dtype"])
        if rounded and dtype.kind == "u":
            limits = np.iinfo(dtype)
            prediction = np.rint(prediction).clip(limits.min, limits.max)
        image = prediction.astype(dtype, copy=False) if rounded else prediction
        return {"": image, **({} if spread is None else {"_spread": spread})}
