"""Otsu's threshold: segmentation as it is done without training."""

import math

import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch import Tensor

from project.baselines.base import RAREST, Baseline, Pairs, known, nothing_known
from project.baselines.trees import blur, local_deviation


class OtsuThreshold(Baseline):
    """Objects are the pixels above, or below, Otsu's threshold of the image.

    Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. Systems, Man, and Cybernetics 9 (1979),
    62-66. Each image gets its own threshold, from its own histogram. What is learned is one choice out of ten for each
    input channel: which view of the image is thresholded (in bright field, objects differ from the background by
    texture, not by brightness), and which side is the object. The pooled Dice of the training images decides.

    Set `size_divisor: 1`: a padded border would change the histogram.
    """

    VIEWS = ("intensity", "smoothed", "fine texture", "coarse texture", "distance from the median")
    classes = 2
    choice: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("choice", torch.zeros(3, dtype=torch.int64))  # channel, view, 0 = above or 1 = below

    def fit(self, pairs: Pairs) -> None:
        """Choose channel, view and side by Dice; pixels of the target (B, H, W) other than 0 and 1 are ignored.

        Raises:
            UserError: No pixel has a class.
        """
        counts, n_objects, n_pixels = [], 0, 0
        for x, y in pairs:
            # Pixels of both sides that are objects, and those that count: (2, C, views, 2).
            sides = torch.stack([_sides(_view(x, view)) for view in range(len(self.VIEWS))], 2)
            is_known, objects = known(y, 2), y == 1
            counts.append(
                torch.stack([(sides & part[:, None, None, None]).sum((0, 4, 5)) for part in (objects, is_known)])
            )
            n_objects, n_pixels = n_objects + int(objects.sum()), n_pixels + int(is_known.sum())
        if n_pixels == 0:
            raise nothing_known(2)
        overlap, size = torch.stack(counts).sum(0).double()
        dice = 2 * overlap / (size + n_objects).clamp(min=1)
        # The first of the best, should several be equal.
        self.choice = torch.tensor(np.unravel_index(int(dice.argmax()), dice.shape)).to(self.choice.device)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> log-probabilities (B, 2, H, W) float32: a decision, made as sure as it may be."""
        channel, view, side = self.choice.tolist()
        objects = _sides(_view(x[:, channel : channel + 1], view))[:, 0, side]
        return torch.stack([objects, ~objects], dim=1).float() * math.log(RAREST)


def _view(x: Tensor, view: int) -> Tensor:
    """(B, C, H, W) -> the same shape."""
    x = x.float()
    if view == 0:
        return x
    if view == 1:
        return blur(x, 2)
    if view < 4:
        return local_deviation(x, 2 if view == 2 else 4, blur(x, 2 if view == 2 else 4))
    return (x - x.flatten(2).median(2).values[:, :, None, None]).abs()


def _sides(x: Tensor) -> Tensor:
    """(B, C, H, W) -> pixels above and below Otsu's threshold, (B, C, 2, H, W) bool.

    An image of a single value has no threshold, and nothing in it is an object.
    """
    # In float32 the 256 bins of a histogram may be finer than the numbers.
    images = x.double().cpu().flatten(0, 1).numpy()
    sides = np.zeros((len(images), 2, *images.shape[1:]), dtype=bool)
    for image, side in zip(images, sides, strict=True):
        if image.min() < image.max():
            side[0] = image > threshold_otsu(image)
            side[1] = ~side[0]
    return torch.from_numpy(sides).unflatten(0, x.shape[:2]).to(x.device)
