"""Learning from images without labels: fill in what is hidden. What was learned is a start for the other tasks."""

import math
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from project.data.batch import Tensors
from project.data.dataset_facts import DatasetFacts
from project.data.samplers import random_bits, random_stream
from project.data.statistics import image_statistics
from project.errors import UserError
from project.metrics.pretraining import MaskedPatchMetrics
from project.tasks.base import Task
from project.tasks.figures import draw_translation


class MaskedImageTask(Task):
    """Fill in the hidden patches of `image`: masked image modelling, He et al. (2022), CVPR, with any network.

    The network sees the normalized image with patches hidden, and gives the whole image, in normalized units; loss and
    scores look at the hidden pixels only. Training hides other patches in each step; validation hides the same ones of
    an image in every epoch and run with this seed.

    It reads images alone: of `unlabeled.h5` where the dataset has one, else all training images. Validation is on
    val.h5. Other tasks start from it with `pretrained: {file: runs/unet_masked/latest, skip: [...]}`.

    Args:
        net: Maps normalized (B, C, H, W) to (B, C, H, W), unbounded.
        loss: Of output and image, mean over pixels, 0 where they agree; MSE by default.
        patch: Side of a patch, in pixels: about that of the objects, or neighbors show everything.
        ratio: Share of the patches that are hidden, between 0 and 1.
        options: See `project.tasks.base.Task`.
    """

    kind = "pretraining"
    inputs = ("image",)
    default_metrics = (MaskedPatchMetrics,)
    is_dense = True

    def __init__(
        self, net: nn.Module, loss: nn.Module | None = None, patch: int = 16, ratio: float = 0.6, **options: Any
    ) -> None:
        super().__init__(net, loss or nn.MSELoss(), **options)
        if patch < 1 or not 0 < ratio < 1:
            raise UserError(f"patch is {patch} and ratio {ratio:g}; take a number of pixels, and a share from 0 to 1")
        self.patch, self.ratio = patch, ratio

    @classmethod
    def network_channels(cls, data: DatasetFacts, options: dict[str, Any]) -> tuple[int, int | None]:
        return data.n_channels["image"], data.n_channels["image"]

    def decode_output(self, output: Tensor) -> Tensor:
        """(B, C, H, W) as it is: a prediction is in normalized units. Other numbers of outputs are refused."""
        self.check_output(output, [f"channel {c}" for c in range(len(self.normalize_input.offset))])
        return output

    def make_target(self, batch: Tensors) -> Tensor:
        """The normalized image, and as last channel where it is hidden (1) or not (0), (B, C + 1, H, W)."""
        x = self.network_input(batch)
        height, width = x.shape[2:]
        if self.training:
            x = self.intensity_augmentation(x)
            hidden = random_patches(len(x), height, width, self.patch, self.ratio, device=x.device)
        else:
            numbers = [random_bits(random_stream(self.seed, 0), index) >> 1 for index in batch["index"].tolist()]
            generators = [torch.Generator().manual_seed(number) for number in numbers]
            masks = [random_patches(1, height, width, self.patch, self.ratio, g) for g in generators]
            hidden = torch.cat(masks).to(x.device)
        return torch.cat([x, hidden.to(x.dtype)], 1)

    def compute_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over the hidden pixels."""
        x, hidden = target[:, :-1], target[:, -1:] > 0
        # Where output and image are the same there is no loss; choosing pixels by a mask would wait for the device.
        return super().compute_loss(torch.where(hidden, output, x), x) * (hidden.numel() / hidden.sum())

    def forward_batch(self, batch: Tensors) -> tuple[Tensor, Tensor]:
        """What the network fills in, and the image with what is hidden; in training of the augmented image."""
        target = self.make_target(self.device_augmentation(batch) if self.training else batch)
        return self.apply_net(hide(target[:, :-1], target[:, -1:] > 0)), target

    def draw(self, samples: list[dict[str, Any]]) -> Figure:
        shown = []
        for sample in samples:
            whole = {name: sample[name] for name in ("image", "index")}
            whole["image_statistics"] = image_statistics(sample["image"])
            with torch.no_grad():
                target = self.make_target({k: torch.as_tensor(v)[None].to(self.device) for k, v in whole.items()})
                seen = hide(target[:, :-1], target[:, -1:] > 0)
            arrays = {"image": seen[0].cpu().numpy(), "target": target[0, :-1].cpu().numpy()}
            shown.append({**arrays, "id": sample["id"], "prediction": sample["prediction"]})
        return draw_translation(shown)


def random_patches(
    n: int,
    height: int,
    width: int,
    patch: int,
    ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Which pixels are hidden: the same number of patches in every image, each image its own.

    Of `n` images, a `ratio` of the patches with sides of `patch` pixels is hidden; at least one is, and one is not.
    Patches at the lower and right border may be cut. The generator is on `device`; None is torch's own.

    Returns:
        (n, 1, height, width) bool, True where hidden.

    Raises:
        UserError: The image is one patch, of which nothing could be seen.
    """
    rows, columns = math.ceil(height / patch), math.ceil(width / patch)
    if rows * columns < 2:
        raise UserError(f"patches of {patch} pixels cover a whole image of {height} x {width}; take smaller patches")
    n_hidden = min(max(1, round(ratio * rows * columns)), rows * columns - 1)
    order = torch.rand(n, rows * columns, generator=generator, device=device).argsort(1)
    hidden = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :n_hidden], True)
    cells = hidden.view(n, 1, rows, columns)
    return cells.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., :height, :width]


def hide(x: Tensor, hidden: Tensor) -> Tensor:
    """Replace hidden pixels of (B, C, H, W) by the mean of the visible ones, for each image and channel.

    A fixed value would be far from the background in some images, and show the network where the patches are in others.
    `hidden` is (B, 1, H, W) bool, with at least one pixel of each image that can be seen.
    """
    seen = (~hidden).to(x.dtype)
    mean = (x * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)
    return torch.where(hidden, mean, x)
