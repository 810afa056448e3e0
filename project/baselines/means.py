"""Baselines that do not look at the image: the mean of the targets, and the frequencies of the classes."""

import torch
from torch import Tensor
from torch.nn import functional

from project.baselines.base import RAREST, Baseline, Pairs, known, nothing_known


class TrainingMean(Baseline):
    """Predicts the mean of the training targets everywhere. R2 is 0 by definition, in the training split.

    Its output is like its training targets: one value per pixel and channel, or some numbers per image.
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))

    def fit(self, pairs: Pairs) -> None:
        """Average over all pixels (B, C', H, W), or over all images (B, K)."""
        sums, n = [], 0
        for _, y in pairs:
            sums.append(y.double().transpose(0, 1).flatten(1).sum(1))
            n += y[:, 0].numel()
        mean = (torch.stack(sums).sum(0) / n).float()
        self.mean = mean.view(-1, *[1] * (y.ndim - 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W) or (B, K)."""
        return self.mean.expand(len(x), -1, *(x.shape[2:] if self.mean.ndim > 1 else ()))


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


class MajorityClass(Baseline):
    """Predicts the class frequencies of the training split everywhere, hence the most frequent class.

    Its output is like its training targets: one class per image, one per pixel, or several labels per image.

    Args:
        classes: Number of classes. Targets outside 0..classes-1 are ignored.
    """

    logits: Tensor
    per_pixel: Tensor

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("logits", torch.zeros(classes))
        self.register_buffer("per_pixel", torch.tensor(False))

    def fit(self, pairs: Pairs) -> None:
        """Count classes (B,) or (B, H, W) int64, or zeros and ones (B, K).

        Raises:
            UserError: There is nothing to count.
        """
        n = torch.zeros(2, self.classes, dtype=torch.float64, device=self.logits.device)  # hits and misses
        for _, y in pairs:
            if y.is_floating_point():
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
