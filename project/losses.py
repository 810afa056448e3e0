"""Losses that torch and segmentation_models_pytorch lack, and fitting losses to the training split.

A task calls `loss(output, target)` and gets a scalar: with a batch in training, with a single image in validation, so
that no loss depends on the other samples of the batch. MSE, L1 and BCE are torch's; Dice, focal,
Tversky, Lovasz and Jaccard are `segmentation_models_pytorch.losses`, with `mode: multiclass`. All compute in float32.
"""

import logging
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from project.errors import UserError
from project.sliding_mean import SSIM_WINDOW, structural_similarity

log = logging.getLogger("project")

NO_COUNTS = 'class_weights "balanced" needs the class counts of the training split, which are not known: type weights'


class WeightedSum(nn.Module):
    """Sum of weight * loss, of losses that take the same output and target; weights are 1 by default."""

    def __init__(self, losses: list[nn.Module], weights: list[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * len(losses) if weights is None else weights
        if len(weights) != len(losses):
            raise UserError(f"WeightedSum has {len(losses)} losses but {len(weights)} weights; give one for each")
        if not all(map(math.isfinite, weights)) or not any(weights):
            raise UserError(f"the weights of WeightedSum, {weights}, must be finite and not all zero")
        self.losses, self.weights = nn.ModuleList(losses), weights

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar; output and target as the losses want them."""
        pairs = zip(self.losses, self.weights, strict=True)
        first, *others = [weight * loss(output, target) for loss, weight in pairs if weight]
        return sum(others, first)


class SSIMLoss(nn.Module):
    """1 - SSIM, the mean over images and channels; see `project.sliding_mean`.

    SSIM is made for intensities that start at 0: where the means of prediction and target have opposite signs, its
    gradient would push structures the wrong way. `fit_to_data` therefore passes range and lowest value of each channel,
    and the loss is 1 - the metric `ssim` of the same images. Without it, values are taken to be from 0 to 1.
    """

    value_range: Tensor
    value_low: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Not persistent, as all that comes from the data: see `fit_to_data`.
        self.register_buffer("value_range", torch.ones(1, 1, 1), persistent=False)
        self.register_buffer("value_low", torch.zeros(1, 1, 1), persistent=False)

    def set_value_range(self, low: Tensor, high: Tensor) -> None:
        """Take the range of the normalized targets, (C,); 1 is taken for a channel without any, which is constant."""
        range_ = (high - low).float()
        self.value_range = torch.where(range_ > 0, range_, 1.0).view(-1, 1, 1)
        self.value_low = low.float().view(-1, 1, 1)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """(B, C, H, W) and (B, C, H, W), at least as large as the window -> scalar."""
        _check_same_shape(output, target)
        n, (height, width) = len(SSIM_WINDOW), target.shape[-2:]
        if min(height, width) < n:
            raise UserError(f"SSIMLoss needs images of at least {n} x {n} pixels, not {height} x {width}")
        p, t = ((x.float() - self.value_low) / self.value_range for x in (output, target))
        return 1 - structural_similarity(p, t).mean()


class CrossEntropy(nn.Module):
    """Cross entropy, each sample (or pixel) weighted by its class; where images have several labels, of each by itself.

    "balanced" is n / (K * n_k) with the counts of the training split, n_k of class k and n in all, K classes that occur
    (King and Zeng, 2001, as scikit-learn's `class_weight="balanced"`): all classes then weigh the same, and the mean
    weight is 1. A class that never occurs has weight 0 and is named in a warning: it cannot be learned, but others can.
    With several labels it is n_negative / n_positive where a label is present, as the `pos_weight` of
    `torch.nn.BCEWithLogitsLoss`; a label that is always or never present keeps weight 1, with a warning.

    Two things differ from `torch.nn.CrossEntropyLoss(weight=...)`:

    - The sum is divided by the number of samples that are not ignored, not by the sum of their weights. Torch's weights
      cancel where all samples are of one class: always when single images are classified in validation, often in small
      batches. Here the mean over images is the loss of the split. If all samples are ignored it is 0, not NaN.
    - With label smoothing a sample has one weight, that of its class. Torch weights the smoothed target, of which a
      rare class can then get the largest part in every sample.

    Args:
        class_weights: "none", "balanced", or one weight for each class, taken as they are.
        label_smoothing: Share of the target that is spread evenly over all classes, at least 0 and below 1.
        ignore_index: Class that does not count; the task sets that of the data.
    """

    weight: Tensor | None

    def __init__(
        self,
        class_weights: Literal["none", "balanced"] | list[float] = "none",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 1")
        self.class_weights, self.label_smoothing, self.ignore_index = class_weights, label_smoothing, ignore_index
        weight = None if isinstance(class_weights, str) else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)

    def set_class_counts(self, counts: list[float] | None, n_samples: int | None = None) -> None:
        """Take the weights, if they are to be balanced, from the number of samples or pixels of each class, (K,).

        `n_samples` is the number of all samples where each may have several labels, else None.
        """
        if self.class_weights != "balanced":
            return
        if not counts or not any(counts):
            raise UserError(NO_COUNTS)
        if constant := [str(k) for k, count in enumerate(counts) if count in (0, n_samples)]:
            log.warning("class %s is in no training sample, or in all: it cannot be learned", ", ".join(constant))
        if n_samples:
            weights = [1.0 if count in (0, n_samples) else (n_samples - count) / count for count in counts]
        else:
            share = sum(counts) / sum(count > 0 for count in counts)
            weights = [share / count if count else 0.0 for count in counts]
        self.weight = torch.tensor(weights, dtype=torch.float32)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Logits (B, K) or (B, K, H, W) -> scalar; target: classes int64, or zeros and ones (B, K) float."""
        weight, n = self.weight, output.shape[1]
        if weight is None and self.class_weights == "balanced":
            raise UserError(NO_COUNTS)
        if weight is not None and len(weight) != n:
            raise UserError(f"there are {len(weight)} class weights but {n} classes; give one for each")
        if target.is_floating_point():
            _check_same_shape(output, target)
            target = target.float()
            smooth = target * (1 - self.label_smoothing) + self.label_smoothing / 2
            losses = functional.binary_cross_entropy_with_logits(output.float(), smooth, reduction="none")
            return (losses if weight is None else losses * (1 + (weight - 1) * target)).mean()
        options = {"ignore_index": self.ignore_index, "label_smoothing": self.label_smoothing}
        losses = functional.cross_entropy(output.float(), target, reduction="none", **options)  # type: ignore[arg-type]
        counted = target != self.ignore_index
        if weight is not None:
            losses = losses * weight[target.where(counted, 0)]
        return losses.sum() / counted.sum().clamp(min=1)


def fit_to_data(
    loss: nn.Module,
    class_counts: list[float] | None = None,
    n_samples: int | None = None,
    ignore_index: int | None = None,
    value_range: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Fit a loss, and all losses inside it, to the training split: counts, ignore index, range. The task calls it.

    What is taken from the data becomes non-persistent buffers, which move with the model, but are not in checkpoints:
    so a checkpoint loads with any loss, and weights typed in a later experiment are not overwritten by old ones.

    Args:
        loss: Any module.
        class_counts: (K,) samples (segmentation: pixels that are not ignored) of each class; for every module with a
            method `set_class_counts(counts, n_samples)`.
        n_samples: Number of samples in the training split where each may have several labels; else None.
        ignore_index: Value in class maps that does not count; None if all do.
        value_range: Lowest and highest normalized target of the training split, (C,) each; for every module with a
            method `set_value_range(low, high)`.

    Raises:
        UserError: A loss needs statistics that are missing, or cannot ignore pixels although some are to be ignored.
    """
    for module in loss.modules():
        if callable(set_class_counts := getattr(module, "set_class_counts", None)):
            set_class_counts(class_counts, n_samples)
        if value_range and callable(set_value_range := getattr(module, "set_value_range", None)):
            set_value_range(*value_range)
    if ignore_index is not None:
        _set_ignore_index(loss, ignore_index, handled=False)


def _set_ignore_index(module: nn.Module, ignore_index: int, handled: bool) -> None:
    """Go down to the leaves, each of which must ignore, or be part of something that does."""
    if hasattr(module, "ignore_index"):
        module.ignore_index = ignore_index  # type: ignore[assignment]
        handled = True
    children = list(module.children())
    if not children and not handled:
        raise UserError(
            f"{type(module).__name__} cannot ignore pixels, but the masks have some to ignore ({ignore_index}); "
            "take a loss with an ignore_index, such as project.losses.CrossEntropy"
        )
    for child in children:
        _set_ignore_index(child, ignore_index, handled)


def _check_same_shape(output: Tensor, target: Tensor) -> None:
    # Otherwise one would be repeated along the other without a word.
    if output.shape != target.shape:
        raise UserError(
            f"the network gives {tuple(output.shape)}, the target is {tuple(target.shape)}; "
            "its number of output channels or classes must be that of the data"
        )
