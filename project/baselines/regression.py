"""Baselines for numbers per image: their mean, and linear regression on the colors of the image."""

import torch
from torch import Tensor

from project.baselines.base import Baseline, Pairs
from project.baselines.classes import color_features


class MeanValue(Baseline):
    """Predicts the mean of the training values for every image. R2 is 0 by definition, in the training split."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))

    def fit(self, pairs: Pairs) -> None:
        """Average over all training images."""
        self.mean = torch.cat([y.double().cpu() for _, y in pairs]).mean(0).float()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return self.mean.expand(len(x), -1)


class ColorRegression(Baseline):
    """Linear least squares on the mean and standard deviation of each channel: shapes and textures do not count."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0, 0, dtype=torch.float64))

    def fit(self, pairs: Pairs) -> None:
        """Solve for the weights over all training images."""
        features, targets = zip(*((_with_one(x).cpu(), y.double().cpu()) for x, y in pairs), strict=True)
        self.weight = torch.linalg.lstsq(torch.cat(features), torch.cat(targets), driver="gelsd").solution

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return (_with_one(x) @ self.weight).float()


def _with_one(x: Tensor) -> Tensor:
    features = color_features(x).double()
    return torch.cat([features, torch.ones_like(features[:, :1])], 1)
