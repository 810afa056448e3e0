"""What a network must beat. Baselines are networks whose `fit` replaces training; everything else is the same.

`fit` takes an iterator of batches of whole normalised images, input (B, C, H, W) and target (B, C', H, W). What it
finds is kept in buffers, so that checkpoints hold plain tensors.
"""

from collections.abc import Iterable
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from torch import Tensor, nn
from torch.nn import functional

from project.windows import gaussian_weights, window_mean

Pairs = Iterable[tuple[Tensor, Tensor]]


class Baseline(nn.Module):
    """A network that is fitted. Its buffers take their shapes from the data, and from the checkpoint when loaded."""

    def fit(self, pairs: Pairs) -> None:
        """Find the buffers."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


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
    """Least squares on powers and products of the input channels at the same pixel: what no neighbourhood can explain.

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


class LocalFilters(nn.Module):
    """13 features of the surroundings of each pixel, per input channel.

    The value itself, and at four scales the Gaussian mean, the length of its gradient and the standard deviation under
    the same window.

    Args:
        sigmas: Scales in pixels.
    """

    def __init__(self, sigmas: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)) -> None:
        super().__init__()
        self.sigmas = sigmas

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C * (1 + 3 * scales), H, W) float32."""
        features = [x]
        for sigma in self.sigmas:
            mean = _blur(x, sigma)
            down, right = torch.gradient(mean, dim=(2, 3))
            variance = _blur(x**2, sigma) - mean**2
            features += [mean, torch.hypot(down, right), variance.clamp(min=0).sqrt()]
        return torch.cat(features, dim=1)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian mean with repeated borders, (B, C, H, W) -> the same shape."""
    radius = int(3 * sigma + 0.5)
    x = functional.pad(x, (radius, radius, radius, radius), mode="replicate")
    return window_mean(x, gaussian_weights(sigma, radius))


class BoostedTrees(Baseline):
    """Gradient-boosted regression trees on local filters: what is possible without deep learning.

    scikit-learn grows the trees; they are kept as tables of nodes and walked in torch.

    Args:
        n_trees: Per target channel.
        max_leaves: Per tree.
        n_pixels: Training pixels drawn from all images.
    """

    LEAF = -1
    feature: Tensor
    threshold: Tensor
    branches: Tensor
    value: Tensor
    start: Tensor

    def __init__(self, n_trees: int = 100, max_leaves: int = 31, n_pixels: int = 100_000) -> None:
        super().__init__()
        self.filters, self.n_trees, self.max_leaves, self.n_pixels = LocalFilters(), n_trees, max_leaves, n_pixels
        self._empty(0)

    def _empty(self, n_channels: int) -> None:
        shape = (n_channels, self.n_trees, 2 * self.max_leaves - 1)
        self.register_buffer("feature", torch.full(shape, self.LEAF))
        self.register_buffer("threshold", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("branches", torch.zeros((*shape, 2), dtype=torch.int64))
        self.register_buffer("value", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("start", torch.zeros(n_channels, dtype=torch.float64))

    def fit(self, pairs: Pairs) -> None:
        """Draw pixels from all images, and grow the trees."""
        rng = np.random.default_rng(0)
        features, targets = [], []
        for x, y in pairs:
            # More than can be needed is drawn from each batch, since their number is not known beforehand.
            chosen = torch.from_numpy(rng.permutation(x.shape[2] * x.shape[3])[: max(1, self.n_pixels // 8)])
            chosen = chosen.to(x.device)
            features.append(self.filters(x.float()).flatten(2)[:, :, chosen].transpose(1, 2).flatten(0, 1).cpu())
            targets.append(y.flatten(2)[:, :, chosen].transpose(1, 2).flatten(0, 1).cpu())
        x_all, y_all = torch.cat(features).numpy(), torch.cat(targets).numpy()
        rows = rng.permutation(len(x_all))[: self.n_pixels]
        self._empty(y_all.shape[1])
        for channel in range(y_all.shape[1]):
            trees = HistGradientBoostingRegressor(
                max_iter=self.n_trees, max_leaf_nodes=self.max_leaves, early_stopping=False, random_state=0
            )
            self._keep(trees.fit(x_all[rows], y_all[rows, channel]), channel)

    def _keep(self, trees: HistGradientBoostingRegressor, channel: int) -> None:
        # scikit-learn has no public form of these trees; a test compares the predictions.
        self.start[channel] = float(trees._baseline_prediction.item())
        for index, (tree,) in enumerate(trees._predictors):
            nodes, n = tree.nodes, len(tree.nodes)
            feature = np.where(nodes["is_leaf"], self.LEAF, nodes["feature_idx"])
            self.feature[channel, index, :n] = torch.from_numpy(feature.astype(np.int64))
            self.threshold[channel, index, :n] = torch.from_numpy(nodes["num_threshold"].copy())
            self.branches[channel, index, :n, 0] = torch.from_numpy(nodes["left"].astype(np.int64))
            self.branches[channel, index, :n, 1] = torch.from_numpy(nodes["right"].astype(np.int64))
            self.value[channel, index, :n] = torch.from_numpy(nodes["value"].copy())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W) float32."""
        features = self.filters(x.float())
        b, f, h, w = features.shape
        table = features.permute(0, 2, 3, 1).reshape(-1, f).double()
        channels = [self._walk(table, channel) for channel in range(len(self.start))]
        return torch.stack(channels, dim=1).reshape(b, h, w, -1).permute(0, 3, 1, 2).float()

    def _walk(self, table: Tensor, channel: int) -> Tensor:
        """Sum of the leaves that (N, features) rows fall into."""
        total = self.start[channel].repeat(len(table))
        for tree in range(self.feature.shape[1]):  # of the checkpoint, whatever `n_trees` is
            feature, threshold = self.feature[channel, tree], self.threshold[channel, tree]
            branches = self.branches[channel, tree]
            node = torch.zeros(len(table), dtype=torch.int64, device=table.device)
            while bool((feature[node] != self.LEAF).any()):
                inner = feature[node].clamp(min=0)
                right = (table.gather(1, inner[:, None])[:, 0] > threshold[node]).long()
                node = torch.where(feature[node] == self.LEAF, node, branches[node, right])
            total += self.value[channel, tree][node]
        return total
