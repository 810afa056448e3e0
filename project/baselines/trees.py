"""Gradient-boosted trees on local filters, pixel by pixel."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from torch import Tensor, nn
from torch.nn import functional

from project.baselines.base import Baseline, Pairs, known, log_probabilities, nothing_known
from project.baselines.pixels import sample_pixels
from project.sliding_mean import gaussian_weights, window_mean

SIGMAS = (1.0, 2.0, 4.0, 8.0)  # pixels


class LocalFilters(nn.Module):
    """13 features of the surroundings of each pixel, per input channel.

    The value itself, and at four scales the Gaussian mean, the length of its gradient and the standard deviation under
    the same window.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 13 * C, H, W) float32."""
        features = [x]
        for sigma in SIGMAS:
            mean = blur(x, sigma)
            down, right = torch.gradient(mean, dim=(2, 3))
            features += [mean, torch.hypot(down, right), local_deviation(x, sigma, mean)]
        return torch.cat(features, dim=1)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian mean with repeated borders, (B, C, H, W) -> the same shape."""
    radius = int(3 * sigma + 0.5)
    x = functional.pad(x, (radius, radius, radius, radius), mode="replicate")
    return window_mean(x, gaussian_weights(sigma, radius))


def local_deviation(x: Tensor, sigma: float, mean: Tensor) -> Tensor:
    """Standard deviation under a Gaussian window, (B, C, H, W) -> the same shape; `mean` is `blur(x, sigma)`."""
    return (blur(x**2, sigma) - mean**2).clamp(min=0).sqrt()


class PixelTrees(Baseline):
    """Ensembles of boosted trees, one for each output channel, on the local filters of each pixel.

    scikit-learn grows the trees; they are kept as tables of nodes and walked in torch.

    Args:
        n_trees: Per ensemble.
        max_leaves: Per tree.
        n_pixels: Training pixels sampled from all images.
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
        self.register_buffer("start", torch.empty(0))
        self._empty(0)

    def _empty(self, n_ensembles: int) -> None:
        """Trees that give 0 everywhere."""
        shape, device = (n_ensembles, self.n_trees, 2 * self.max_leaves - 1), self.start.device
        self.register_buffer("feature", torch.full(shape, self.LEAF, device=device))
        self.register_buffer("threshold", torch.zeros(shape, dtype=torch.float64, device=device))
        self.register_buffer("branches", torch.zeros((*shape, 2), dtype=torch.int64, device=device))
        self.register_buffer("value", torch.zeros(shape, dtype=torch.float64, device=device))
        self.register_buffer("start", torch.zeros(n_ensembles, dtype=torch.float64, device=device))

    def _settings(self) -> dict[str, Any]:
        options = {"early_stopping": False, "random_state": 0}
        return {"max_iter": self.n_trees, "max_leaf_nodes": self.max_leaves, **options}

    def _sample(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
        def read(x: Tensor, image: Tensor, pixel: Tensor) -> Tensor:
            return self.filters(x.float()).flatten(2)[image, :, pixel]

        return sample_pixels(batches, self.n_pixels, read)

    def _copy_trees(self, trees: Any, ensembles: Iterable[int]) -> None:
        """Copy scikit-learn's trees; `ensembles` are the ensembles of the first, second ... tree of each iteration."""
        # scikit-learn has no public form of these trees; a test compares the predictions.
        for k, ensemble in enumerate(ensembles):
            self.start[ensemble] = float(trees._baseline_prediction[0, k])
            for index, iteration in enumerate(trees._predictors):
                nodes = iteration[k].nodes
                at = ensemble, index, slice(len(nodes))
                self.feature[at] = torch.from_numpy(np.where(nodes["is_leaf"], self.LEAF, nodes["feature_idx"]))
                self.threshold[at] = torch.from_numpy(nodes["num_threshold"].copy())
                self.branches[at] = torch.from_numpy(np.stack([nodes["left"], nodes["right"]], 1).astype(np.int64))
                self.value[at] = torch.from_numpy(nodes["value"].copy())

    def _sums(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the sum of each ensemble's leaves, (B, ensembles, H, W) float64."""
        features = self.filters(x.float())
        b, f, h, w = features.shape
        table = features.permute(0, 2, 3, 1).reshape(-1, f).double()
        sums = [self._walk(table, ensemble) for ensemble in range(len(self.start))]
        return torch.stack(sums, dim=1).reshape(b, h, w, -1).permute(0, 3, 1, 2)

    def _walk(self, table: Tensor, ensemble: int) -> Tensor:
        """Sum of the leaves that (N, features) rows fall into."""
        total = self.start[ensemble].repeat(len(table))
        values, width = table.flatten(), table.shape[1]
        for tree in range(self.feature.shape[1]):  # as many as the checkpoint has
            feature, threshold, value = (part[ensemble, tree] for part in (self.feature, self.threshold, self.value))
            branches = self.branches[ensemble, tree].flatten()
            rows = torch.arange(len(table), device=table.device)
            reached, node = torch.zeros_like(rows), torch.zeros_like(rows)
            while len(rows):
                split = feature.take(node)
                inner = split != self.LEAF
                if not bool(inner.all()):
                    # Trees are deep in a few places only: rows that have reached their leaf go no further.
                    reached[rows] = node
                    rows, node, split = rows[inner], node[inner], split[inner]
                right = values.take(rows * width + split) > threshold.take(node)
                node = branches.take(2 * node + right)
            total += value.take(reached)
        return total


class BoostedTrees(PixelTrees):
    """Gradient-boosted regression trees on local filters; one ensemble for each target channel."""

    def fit(self, pairs: Pairs) -> None:
        """Sample pixels from all images, and grow the trees."""
        features, targets = self._sample((x, y, torch.ones_like(y[:, 0], dtype=torch.bool)) for x, y in pairs)
        self._empty(targets.shape[1])
        for channel in range(targets.shape[1]):
            trees = HistGradientBoostingRegressor(**self._settings())
            self._copy_trees(trees.fit(features, targets[:, channel]), [channel])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W) float32."""
        return self._sums(x).float()


class BoostedTreesClassifier(PixelTrees):
    """Gradient-boosted classification trees on local filters; one ensemble for each class, or one for two classes.

    Pixels are sampled evenly, not class by class: probabilities are those of the training images, and a rare class
    is seen as rarely as it occurs: raise `n_pixels` for it.

    Args:
        classes: Number of classes. Targets outside 0..classes-1 are ignored.
        n_trees: Per ensemble.
        max_leaves: Per tree.
        n_pixels: Training pixels sampled from all images.
    """

    present: Tensor

    def __init__(self, classes: int = 2, n_trees: int = 100, max_leaves: int = 31, n_pixels: int = 100_000) -> None:
        super().__init__(n_trees, max_leaves, n_pixels)
        self.classes = classes
        self.register_buffer("present", torch.zeros(classes, dtype=torch.bool))

    def fit(self, pairs: Pairs) -> None:
        """Sample pixels from all images, and grow the trees.

        Raises:
            UserError: No pixel has a class.
        """
        features, targets = self._sample((x, y[:, None], known(y, self.classes)) for x, y in pairs)
        if len(targets) == 0:
            raise nothing_known(self.classes)
        labels = targets[:, 0].astype(np.int64)
        self._empty(self.classes)
        self.present = torch.from_numpy(np.bincount(labels, minlength=self.classes) > 0).to(self.start.device)
        if self.present.sum() > 1:
            trees = HistGradientBoostingClassifier(**self._settings()).fit(features, labels)
            # Of two classes, one ensemble has the log-odds of the second; the first keeps 0.
            self._copy_trees(trees, trees.classes_[-trees.n_trees_per_iteration_ :])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> log-probabilities (B, K, H, W) float32."""
        return log_probabilities(self._sums(x), self.present)
