"""Baselines of classification: class frequencies, and logistic regression on colors."""

import math

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from project.baselines.base import RAREST, Baseline, Pairs, known, log_probabilities, nothing_known
from project.errors import UserError

MOST = math.log((1 - RAREST) / RAREST)  # logit of the greatest probability


class MajorityClass(Baseline):
    """Predicts the class frequencies of the training split everywhere, hence the most frequent class.

    Its output is like its training targets: one class per image, one per pixel, or several labels per image.

    Args:
        classes: Number of classes; 0: the task sets it before `fit`. Targets outside 0..classes-1 are ignored.
    """

    logits: Tensor
    per_pixel: Tensor

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("logits", torch.zeros(classes))
        self.register_buffer("per_pixel", torch.tensor(False))

    def fit(self, pairs: Pairs) -> None:
        """Count classes (B,) or (B, H, W) int64, or zeros and ones (B, K), where anything else is unknown.

        Raises:
            UserError: There is nothing to count, or another number of labels.
        """
        n = torch.zeros(2, self.classes, dtype=torch.float64, device=self.logits.device)  # hits and misses
        for _, y in pairs:
            if y.is_floating_point():
                _check_width(y, self.classes)
                n += torch.stack([(y == 1).sum(0), (y == 0).sum(0)]).to(n.device)
            else:
                hits = torch.bincount(y[known(y, self.classes)], minlength=self.classes).to(n.device)
                n += torch.stack([hits, hits.sum() - hits])
        if n.sum() == 0:
            raise nothing_known(self.classes)
        share = (n[0] / n.sum(0).clamp(min=1)).clamp(RAREST, 1 - RAREST)
        self.logits = (share.logit() if y.is_floating_point() else share.log()).float()
        self.per_pixel = torch.tensor(y.ndim == 3, device=n.device)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K), or (B, K, H, W) where it was fitted to pixels."""
        if self.per_pixel:
            return self.logits.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])
        return self.logits.expand(len(x), -1)


class MeanColour(Baseline):
    """Logistic regression on the mean and standard deviation of each channel.

    A score above it owes something to shapes or textures. Set `size_divisor: 1`: a padded border changes the means.

    Args:
        classes: Number of classes; 0: the task sets it before `fit`. Targets outside 0..classes-1 are ignored.
        penalty: Strength of the squared penalty on the weights of the standardised features; scikit-learn's 1 / C.
    """

    weight: Tensor
    bias: Tensor
    present: Tensor
    multi_label: Tensor

    def __init__(self, classes: int = 0, penalty: float = 1.0) -> None:
        super().__init__()
        self.classes, self.penalty = classes, penalty
        self.register_buffer("weight", torch.zeros(classes, 0, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("present", torch.ones(classes, dtype=torch.bool))
        self.register_buffer("multi_label", torch.tensor(False))

    def fit(self, pairs: Pairs) -> None:
        """Regress classes (B,) int64; or each column of (B, K) zeros and ones, where anything else is unknown.

        Raises:
            UserError: There is nothing to fit to, or another number of labels.
        """
        colors, targets = zip(*((color_features(x).cpu(), y.cpu()) for x, y in pairs), strict=True)
        table, y, device = torch.cat(colors).numpy(), torch.cat(targets), self.bias.device
        weight, bias = np.zeros((self.classes, table.shape[1])), np.zeros(self.classes)
        present = torch.ones(self.classes, dtype=torch.bool)
        if y.is_floating_point():
            _check_width(y, self.classes)
            is_known, labels = ((y == 0) | (y == 1)).numpy(), y.numpy()
            for k in range(self.classes):
                rows = is_known[:, k]
                if len(np.unique(labels[rows, k])) > 1:
                    _, weight[[k]], bias[[k]] = self._regress(table[rows], labels[rows, k])
                else:  # never seen, or always
                    bias[k] = MOST if (labels[:, k] == 1).any() else -MOST
        else:
            is_known, labels = known(y, self.classes).numpy(), y.numpy()
            present = torch.from_numpy(np.bincount(labels[is_known], minlength=self.classes) > 0)
            if present.sum() > 1:
                seen, *parameters = self._regress(table[is_known], labels[is_known])
                weight[seen], bias[seen] = parameters
        if not is_known.any():
            raise nothing_known(self.classes)
        self.weight, self.bias = torch.from_numpy(weight).to(device), torch.from_numpy(bias).to(device)
        self.present, self.multi_label = present.to(device), torch.tensor(y.is_floating_point(), device=device)

    def _regress(self, table: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, F) and (N,) -> classes (n,), weights (n, F), biases (n,); of two classes the second alone."""
        scaler = StandardScaler().fit(table)
        model = LogisticRegression(C=1 / self.penalty, max_iter=10_000)
        model.fit(scaler.transform(table), labels)
        weight = model.coef_ / scaler.scale_
        return model.classes_[-len(weight) :], weight, model.intercept_ - weight @ scaler.mean_

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) float32: log-probabilities, or logits of each label by itself."""
        scores = color_features(x) @ self.weight.T + self.bias
        if self.multi_label:
            return scores.clamp(-MOST, MOST).float()
        return log_probabilities(scores, self.present)


def color_features(x: Tensor) -> Tensor:
    """(B, C, H, W) -> mean and standard deviation of each channel, (B, 2 * C) float64, which autocast leaves alone."""
    x = x.double()
    return torch.cat([x.mean((2, 3)), x.std((2, 3), correction=0)], dim=1)


def _check_width(y: Tensor, classes: int) -> None:
    if y.shape[1] != classes:
        raise UserError(f"the images have {y.shape[1]} labels each, but the baseline has `classes: {classes}`")
