"""Linear probes: linear models on the features of a pretrained encoder that is not trained.

A trained network should beat them: they cost one pass over the training images.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Self

import numpy as np
import torch
from segmentation_models_pytorch.encoders import get_encoder  # type: ignore[import-untyped]
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from project.baselines.base import Baseline
from project.baselines.linear import LinearClassifier, unscaled
from project.baselines.pixels import sample_pixels
from project.errors import UserError

STRIDE = 32  # of an encoder with five stages
SIDE = 96  # pixels: smaller images of one label are enlarged, so that the last stages see more than a border
MOST_PIXELS = 48e6  # of the training images that the encoder sees: a minute on one core
FOLDS, ROWS = 3, 4000  # of the cross-validation that chooses the strength of regularization
STRENGTHS = (1e4, 1e3, 1e2, 1e1, 1.0)  # weight of the squared weights of standardized features; the first wins a tie


def most_images(shapes: Sequence[tuple[int, ...]]) -> float:
    """Number of images that have `MOST_PIXELS` together, as the encoder sees them."""
    return MOST_PIXELS / float(np.mean([max(math.prod(shape[-2:]), SIDE**2) for shape in shapes]))


class FrozenEncoder(nn.Module):
    """Features of images, or of their pixels, from all stages of an encoder, and linear scores of them.

    Those of an image are the means of all feature maps. Those of a pixel are the image and all feature maps, upsampled
    bilinearly.

    Args:
        encoder_name: As for `segmentation_models_pytorch.Unet`.
        in_channels: Of the images.
        n_pixels: Training pixels sampled from all images.
    """

    per_pixel: Tensor

    def __init__(self, encoder_name: str, in_channels: int, n_pixels: int) -> None:
        super().__init__()
        self.encoder, self.n_pixels = get_encoder(encoder_name, in_channels, 5, None).eval(), n_pixels
        self.register_buffer("per_pixel", torch.tensor(False))
        self.is_dense = False  # the same, where an export has to know it

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.is_dense = bool(self.per_pixel)

    def train(self, mode: bool = True) -> Self:
        """As of every module, but batch statistics stay those of the weights."""
        return super().train(False)

    def read_table(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[np.ndarray, Tensor, np.ndarray]:
        """Features (N, F), targets (N,) or (N, K) and groups (N,) of all images, or of sampled pixels.

        Args:
            batches: Images (B, C, H, W); targets (B,) or (B, K) of images, (B, H, W) or (B, C', H, W) of pixels, where
                negative classes are not annotated; groups (B,).
        """
        first = next(batches := iter(batches))
        batches, dtype, ndim = chain([first], batches), first[1].dtype, first[1].ndim
        self.is_dense, self.per_pixel = ndim > 2, torch.tensor(ndim > 2, device=self.per_pixel.device)
        if ndim < 3:
            parts = zip(*((self._means(x).cpu(), y.cpu(), group) for x, y, group in batches), strict=True)
            features, targets, groups = (torch.cat(part) for part in parts)
            return features.numpy(), targets, groups.numpy()
        planes = ((x, y.view(len(y), -1, *x.shape[2:]), group.view(-1, 1, 1, 1)) for x, y, group in batches)
        labeled = (
            (x, torch.cat([y, group.expand_as(y[:, :1])], 1), (y[:, 0] >= 0) | (ndim == 4)) for x, y, group in planes
        )
        rows, columns = sample_pixels(labeled, self.n_pixels, self._at)
        if not len(rows):
            raise UserError("nothing to fit a probe to: no pixel of the training images is annotated")
        targets = torch.from_numpy(columns[:, :-1]).to(dtype)
        return rows, targets if ndim == 4 else targets[:, 0], columns[:, -1]

    def scores(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Linear scores (B, K), or (B, K, H, W) of pixels, float32, of images (B, C, H, W)."""
        if not self.is_dense:
            return self._means(x) @ weight.T.float() + bias.float()
        maps = self.maps(x)
        parts = weight.float()[:, :, None, None].split([features.shape[1] for features in maps], 1)
        total = bias.float().view(-1, 1, 1)
        for features, part in zip(maps, parts, strict=True):  # scores are upsampled: fewer than features, and the same
            score = functional.conv2d(features, part)
            total = total + functional.interpolate(score, maps[0].shape[2:], mode="bilinear")
        return total[..., : x.shape[2], : x.shape[3]]

    def maps(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> the image, padded to whole cells of the last stage, and the feature maps."""
        height, width = x.shape[2:]
        padded = functional.pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        return [features for features in self.encoder(padded) if features.shape[1]]  # some stages are empty

    def _means(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F)."""
        if (side := min(x.shape[2:])) < SIDE:
            x = functional.interpolate(x, scale_factor=SIDE / side, mode="bilinear")
        return torch.cat([features.mean((2, 3)) for features in self.maps(x)], 1)

    def _at(self, x: Tensor, image: Tensor, pixel: Tensor) -> Tensor:
        """Features (n, F) at pixels (n,) of images (n,) of a batch (B, C, H, W)."""
        maps, width = self.maps(x), x.shape[3]
        (high, wide), center = maps[0].shape[2:], torch.stack([pixel % width, pixel // width], 1) + 0.5
        grid = center * 2 / torch.tensor([wide, high], device=x.device) - 1
        rows = torch.empty(len(pixel), sum(features.shape[1] for features in maps), device=x.device)
        for number in image.unique():
            here = image == number
            points = grid[here][None, None]
            parts = [functional.grid_sample(m[number : number + 1], points, "bilinear", "border", False) for m in maps]
            rows[here] = torch.cat(parts, 1)[0, :, 0].T
        return rows


class ProbeClassifier(LinearClassifier):
    """Logistic regression on the features of a frozen encoder, for labels of images or masks of pixels.

    Args:
        encoder_name, in_channels, n_pixels: See `FrozenEncoder`.
        classes: Number of classes.
    """

    pretrained_part, most_images = "features.encoder", staticmethod(most_images)

    def __init__(
        self, encoder_name: str = "resnet18", in_channels: int = 1, classes: int = 2, n_pixels: int = 20_000
    ) -> None:
        super().__init__(classes)
        self.features = FrozenEncoder(encoder_name, in_channels, n_pixels)

    def fit(self, pairs: Any) -> None:
        """Regress classes (B,) or (B, H, W) int64, or columns of (B, K) zeros and ones; `pairs` have groups, too."""
        self.fit_table(*self.features.read_table(pairs))

    def fit_model(self, model: Pipeline, table: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> None:
        """With the strength of regularization that predicts other groups best."""
        fit_regularized(model, "logisticregression__C", table, labels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> log-probabilities, or logits of each label, (B, K), or (B, K, H, W) of pixels."""
        return self.decide(self.features.scores(x, self.weight, self.bias))


class ProbeRegression(Baseline):
    """Ridge regression on the features of a frozen encoder, for numbers per image or target images.

    Args:
        encoder_name, in_channels, n_pixels: See `FrozenEncoder`.
    """

    pretrained_part, most_images = "features.encoder", staticmethod(most_images)
    weight: Tensor
    bias: Tensor

    def __init__(self, encoder_name: str = "resnet18", in_channels: int = 1, n_pixels: int = 20_000) -> None:
        super().__init__()
        self.features = FrozenEncoder(encoder_name, in_channels, n_pixels)
        self.register_buffer("weight", torch.zeros(0, 0))
        self.register_buffer("bias", torch.zeros(0))

    def fit(self, pairs: Any) -> None:
        """Regress values (B, K) or (B, C', H, W); `pairs` have groups, too."""
        table, targets, groups = self.features.read_table(pairs)
        model = make_pipeline(StandardScaler(), Ridge())
        fit_regularized(model, "ridge__alpha", table, targets.numpy(), groups)
        self.weight, self.bias = (torch.from_numpy(part).to(self.bias) for part in unscaled(model))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K), or (B, C', H, W)."""
        return self.features.scores(x, self.weight, self.bias)


def fit_regularized(
    model: Pipeline, parameter: str, table: np.ndarray, targets: np.ndarray, groups: np.ndarray
) -> None:
    """Fit a model with the strength of regularization that predicts other groups best, by cross-validation on `ROWS`.

    Where a class is in a single group, other groups say nothing about it, and the default strength is taken.
    """
    rows = np.random.default_rng(0).permutation(len(table))[:ROWS]
    x, y, groups = table[rows], targets[rows], groups[rows]
    classes = np.unique(y) if hasattr(model, "predict_proba") else np.empty(0)
    n_groups = min((len(np.unique(groups[y == k])) for k in classes), default=len(np.unique(groups)))
    if n_groups > 1:
        folds = (StratifiedGroupKFold if len(classes) else GroupKFold)(min(FOLDS, n_groups))
        strengths = {parameter: [1 / strength for strength in STRENGTHS] if len(classes) else STRENGTHS}
        score = "neg_log_loss" if len(classes) else "neg_mean_squared_error"
        search = GridSearchCV(model, strengths, scoring=score, cv=folds, refit=False).fit(x, y, groups=groups)
        if np.isfinite(search.cv_results_["mean_test_score"]).any():  # not where a fold lacks a class
            model.set_params(**search.best_params_)
    model.fit(table, targets)
