"""Linear classifiers on features of whole images or of pixels: logistic regression, kept as weights."""

import math
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from project.baselines.base import RAREST, Baseline, known, log_probabilities, nothing_known

MOST = math.log((1 - RAREST) / RAREST)  # logit of the greatest probability


class LinearClassifier(Baseline):
    """Logistic regression on standardized features.

    Args:
        classes: Number of classes. Targets outside 0..classes-1 are ignored.
    """

    weight: Tensor
    bias: Tensor
    present: Tensor
    multi_label: Tensor

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("weight", torch.zeros(classes, 0, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("present", torch.ones(classes, dtype=torch.bool))
        self.register_buffer("multi_label", torch.tensor(False))
        self.has_several = False  # the same, where an export has to know it

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.has_several = bool(self.multi_label)

    def fit_table(self, table: np.ndarray, y: Tensor, groups: np.ndarray) -> None:
        """Regress classes (N,) int64, or each column of (N, K) zeros and ones, on features (N, F).

        Raises:
            UserError: There is nothing to fit to.
        """
        weight, bias = np.zeros((self.classes, table.shape[1])), np.zeros(self.classes)
        present, labels, device = torch.ones(self.classes, dtype=torch.bool), y.numpy(), self.bias.device
        if y.is_floating_point():
            for k in range(self.classes):
                if len(np.unique(labels[:, k])) > 1:
                    _, weight[[k]], bias[[k]] = self._regress(table, labels[:, k], groups)
                else:  # never seen, or always
                    bias[k] = MOST if labels[0, k] else -MOST
        else:
            is_known = known(y, self.classes).numpy()
            present = torch.from_numpy(np.bincount(labels[is_known], minlength=self.classes) > 0)
            if not present.any():
                raise nothing_known(self.classes)
            if present.sum() > 1:
                seen, *parameters = self._regress(table[is_known], labels[is_known], groups[is_known])
                weight[seen], bias[seen] = parameters
        self.weight, self.bias = torch.from_numpy(weight).to(device), torch.from_numpy(bias).to(device)
        self.has_several, self.present = y.is_floating_point(), present.to(device)
        self.multi_label = torch.tensor(self.has_several, device=device)

    def _regress(
        self, table: np.ndarray, labels: np.ndarray, groups: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, F) and (N,) -> classes (n,), weights (n, F), biases (n,); of two classes the second alone."""
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000))
        self.fit_model(model, table, labels, groups)
        weight, bias = unscaled(model)
        return model[-1].classes_[-len(weight) :], weight, bias

    def fit_model(self, model: Pipeline, table: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> None:
        """Fit a model; groups (N,) say which rows are not independent."""
        model.fit(table, labels)

    def decide(self, scores: Tensor) -> Tensor:
        """Scores (B, K, ...) -> log-probabilities, or logits of each label by itself, float32."""
        if self.has_several:
            return scores.clamp(-MOST, MOST).float()
        return log_probabilities(scores, self.present)


def unscaled(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n, F) and biases (n,) of a scaler and a linear model, for features as they are."""
    scaler, linear = model
    weight = np.atleast_2d(linear.coef_) / scaler.scale_
    return weight, linear.intercept_ - weight @ scaler.mean_
