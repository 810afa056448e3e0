"""Baselines that see colors alone: regressions on the mean and spread of an image's channels, or on single pixels.

A score above them owes something to shapes or textures. Set `size_divisor: 1`: a padded border changes the means.
"""

import math
from itertools import combinations_with_replacement

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from project.baselines.base import RAREST, Baseline, Pairs, known, log_probabilities, nothing_known

MOST = math.log((1 - RAREST) / RAREST)  # logit of the greatest probability


class ColorClassifier(Baseline):
    """Logistic regression on the mean and standard deviation of each channel.

    Args:
        classes: Number of classes; 0: the task sets it before `fit`. Targets outside 0..classes-1 are ignored.
    """

    weight: Tensor
    bias: Tensor
    present: Tensor
    multi_label: Tensor

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("weight", torch.zeros(classes, 0, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("present", torch.ones(classes, dtype=torch.bool))
        self.register_buffer("multi_label", torch.tensor(False))

    def fit(self, pairs: Pairs) -> None:
        """Regress classes (B,) int64; or each column of (B, K) zeros and ones.

        Raises:
            UserError: There is nothing to fit to.
        """
        colors, targets = zip(*((color_features(x).cpu(), y.cpu()) for x, y in pairs), strict=True)
        table, y, device = torch.cat(colors).numpy(), torch.cat(targets), self.bias.device
        weight, bias = np.zeros((self.classes, table.shape[1])), np.zeros(self.classes)
        present, labels = torch.ones(self.classes, dtype=torch.bool), y.numpy()
        if y.is_floating_point():
            for k in range(self.classes):
                if len(np.unique(labels[:, k])) > 1:
                    _, weight[[k]], bias[[k]] = self._regress(table, labels[:, k])
                else:  # never seen, or always
                    bias[k] = MOST if labels[0, k] else -MOST
        else:
            is_known = known(y, self.classes).numpy()
            present = torch.from_numpy(np.bincount(labels[is_known], minlength=self.classes) > 0)
            if not present.any():
                raise nothing_known(self.classes)
            if present.sum() > 1:
                seen, *parameters = self._regress(table[is_known], labels[is_known])
                weight[seen], bias[seen] = parameters
        self.weight, self.bias = torch.from_numpy(weight).to(device), torch.from_numpy(bias).to(device)
        self.present, self.multi_label = present.to(device), torch.tensor(y.is_floating_point(), device=device)

    @staticmethod
    def _regress(table: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, F) and (N,) -> classes (n,), weights (n, F), biases (n,); of two classes the second alone."""
        scaler = StandardScaler().fit(table)
        model = LogisticRegression(max_iter=10_000)
        model.fit(scaler.transform(table), labels)
        weight = model.coef_ / scaler.scale_
        return model.classes_[-len(weight) :], weight, model.intercept_ - weight @ scaler.mean_

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) float32: log-probabilities, or logits of each label by itself."""
        scores = color_features(x) @ self.weight.T + self.bias
        if self.multi_label:
            return scores.clamp(-MOST, MOST).float()
        return log_probabilities(scores, self.present)


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
