"""Baselines that see colors alone: regressions on the mean and spread of an image's channels, or on single pixels.

A score above them owes something to shapes or textures. Set `size_divisor: 1`: a padded border changes the means.
"""

from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from project.baselines.base import Baseline, Pairs
from project.baselines.linear import LinearClassifier


class ColorClassifier(LinearClassifier):
    """Logistic regression on the mean and standard deviation of each channel."""

    def fit(self, pairs: Pairs) -> None:
        """Regress classes (B,) int64; or each column of (B, K) zeros and ones."""
        colors, targets = zip(*((color_features(x).cpu(), y.cpu()) for x, y in pairs), strict=True)
        table = torch.cat(colors).numpy()
        self.fit_table(table, torch.cat(targets), np.arange(len(table)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) float32: log-probabilities, or logits of each label by itself."""
        return self.decide(color_features(x) @ self.weight.T + self.bias)


class ColorRegression(Baseline):
    """Linear least squares on the mean and standard deviation of each channel, for numbers per image."""

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


def color_features(x: Tensor) -> Tensor:
    """(B, C, H, W) -> mean and standard deviation of each channel, (B, 2 * C) float64, which autocast leaves alone."""
    x = x.double()
    return torch.cat([x.mean((2, 3)), x.std((2, 3), correction=0)], dim=1)


def _with_one(x: Tensor) -> Tensor:
    features = color_features(x)
    return torch.cat([features, torch.ones_like(features[:, :1])], 1)
