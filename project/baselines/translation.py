"""What a network must beat. Baselines are networks whose `fit` replaces training; everything else is the same.

`fit` takes an iterator of batches of whole normalized images, input (B, C, H, W) and target: (B, C', H, W) in
translation, (B, H, W) in segmentation, (B,) or (B, K) in classification. What it finds is kept in buffers, so that
checkpoints hold plain tensors.

Those of translation that need no more than sums stand here; all have their names here, for experiment files.
"""

from itertools import combinations_with_replacement

import torch
from torch import Tensor
from torch.nn import functional

from project.baselines.base import Baseline, Pairs
from project.baselines.classes import MajorityClass, MeanColour
from project.baselines.threshold import OtsuThreshold
from project.baselines.trees import BoostedTrees, BoostedTreesClassifier

__all__ = [
    "Baseline",
    "BoostedTrees",
    "BoostedTreesClassifier",
    "ImageMean",
    "MajorityClass",
    "MeanColour",
    "OtsuThreshold",
    "PixelRegression",
    "TrainingMean",
]


class TrainingMean(Baseline):
    """Predicts the mean of the training targets everywhere. R2 is 0 by definition, in the training split."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))

    def fit(self, pairs: Pairs) -> None:
        """Average over all training pixels."""
        sums, n = [], 0
        for _, y in pairs:
            sums.append(y.double().sum((0, 2, 3)))
            n += y[:, 0].numel()
        self.mean = (torch.stack(sums).sum(0) / n).float()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        return self.mean.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])


class ImageMean(Baseline):
    """An oracle: predicts the mean of the very target it is measured against.

    It shows how much of a pooled score is owed to knowing which image is bright. No real model is shown the target.
    """

    oracle = True

    def fit(self, pairs: Pairs) -> None:
        """There is nothing to learn."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """(B, C, H, W) and (B, C', H, W) -> (B, C', H, W)."""
        mean = target.mean((2, 3), keepdim=True).expand_as(target)
        # The input may be padded beyond the target.
        bottom, right = x.shape[2] - target.shape[2], x.shape[3] - target.shape[3]
        return functional.pad(mean, (0, right, 0, bottom), mode="replicate")


class PixelRegression(Baseline):
    """Least squares on powers and products of the input channels at the same pixel: without any neighborhood.

    Args:
        degree: Of the polynomial.
    """

    weight: Tensor

    def __init__(self, degree: int = 3) -> None:
        super().__init__()
        self.degree = degree
        self.register_buffer("weight", torch.empty(0))

    def fit(self, pairs: Pairs) -> None:
        """Solve the normal equations, summed in float64 over all training pixels."""
        gram = right = torch.zeros((), dtype=torch.float64)
        for x, y in pairs:
            a = self._features(x.double()).flatten(2).transpose(1, 2).flatten(0, 1)
            gram = gram + a.T @ a
            right = right + a.T @ y.double().flatten(2).transpose(1, 2).flatten(0, 1)
        solution = torch.linalg.lstsq(gram.cpu(), right.cpu(), driver="gelsd").solution
        self.weight = solution.float().to(right.device)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        with torch.autocast(x.device.type, enabled=False):
            return torch.einsum("bthw,to->bohw", self._features(x.float()), self.weight)

    def _features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, terms, H, W), the constant first."""
        channels = range(x.shape[1])
        terms = [t for d in range(1, self.degree + 1) for t in combinations_with_replacement(channels, d)]
        products = [torch.stack([x[:, c] for c in term]).prod(0) for term in terms]
        return torch.stack([torch.ones_like(x[:, 0]), *products], dim=1)
