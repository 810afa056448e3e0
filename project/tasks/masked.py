"""Learning from images without labels: fill in what is hidden. What was learned is a start for the other tasks."""

from typing import Any, ClassVar, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from project.data.random_stream import random_bits, random_stream
from project.errors import UserError
from project.tasks.base import Batch, Rows, Task
from project.tasks.figures import draw_translation
from project.tasks.masking import hide, random_patches

SCORES = ("mse", "mae", "r2")


class MaskedImageTask(Task):
    """Fill in the hidden patches of `image`: masked image modelling, He et al. (2022), CVPR, with any network.

    The network sees the normalised image with patches hidden, and gives the whole image, in normalised units; loss and
    scores look at the hidden pixels only. Training hides other patches in each step; validation hides the same ones of
    an image in every epoch and run with this seed.

    It reads images alone: of `unlabeled.h5` where the dataset has one, else all training images. Validation is on
    val.h5. A segmentation or translation starts from it with `pretrained: {file: runs/unet_mae/latest, skip: [...]}`.

    Args:
        net: Maps normalised (B, C, H, W) to (B, C, H, W), unbounded.
        loss: Of output and image, mean over pixels, 0 where they agree; MSE by default.
        patch: Side of a patch, in pixels: about that of the objects, or neighbours tell all.
        ratio: Share of the patches that are hidden, between 0 and 1.
        options: See `project.tasks.base.Task`.
    """

    kind = "pretraining"
    inputs: ClassVar[tuple[str, ...]] = ("image",)
    main_metrics: ClassVar[dict[str, Literal["min", "max", "zero"]]] = {
        "mse": "min",
        "mae": "min",
        "r2_pooled": "max",
        "r2": "max",
    }

    def __init__(
        self, net: nn.Module, loss: nn.Module | None = None, patch: int = 16, ratio: float = 0.6, **options: Any
    ) -> None:
        super().__init__(net, loss or nn.MSELoss(), **options)
        if patch < 1 or not 0 < ratio < 1:
            raise UserError(f"patch is {patch} and ratio {ratio:g}; take a number of pixels, and a share from 0 to 1")
        self.patch, self.ratio = patch, ratio

    @property
    def metric_settings(self) -> dict[str, float]:
        """What is hidden decides how hard it is."""
        return {"patch": self.patch, "ratio": self.ratio}

    def decode_output(self, output: Tensor) -> Tensor:
        """(B, C, H, W) as it is: a prediction is in normalised units.

        Raises:
            UserError: The network has another number of output channels; they would be repeated without a word.
        """
        if output.shape[1] != (n := len(self.normalize_input.offset)):
            raise UserError(f"the network gives {output.shape[1]} channels, the image has {n}")
        return output

    def make_target(self, batch: Batch) -> Tensor:
        """The normalised image, and as last channel where it is hidden (1) or not (0), (B, C + 1, H, W)."""
        return self._with_mask(self.network_input(batch), batch)

    def _with_mask(self, x: Tensor, batch: Batch) -> Tensor:
        size = (x.shape[2], x.shape[3], self.patch, self.ratio)
        if self.training:
            hidden = random_patches(len(x), *size, device=x.device)
        else:
            numbers = [random_bits(random_stream(self.seed, 0), index) >> 1 for index in batch["index"].tolist()]
            each = [random_patches(1, *size, torch.Generator().manual_seed(number)) for number in numbers]
            hidden = torch.cat(each).to(x.device)
        return torch.cat([x, hidden.to(x.dtype)], 1)

    def compute_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over the hidden pixels."""
        x, hidden = target[:, :-1], target[:, -1:] > 0
        # Where output and image are the same there is no loss; choosing pixels by a mask would wait for the device.
        return super().compute_loss(torch.where(hidden, output, x), x) * (hidden.numel() / hidden.sum())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch; what augmentation makes of an image is what is to be filled in."""
        batch = self.device_augmentation(batch)
        target = self._with_mask(self.intensity_augmentation(self.network_input(batch)), batch)
        loss = self.compute_loss(self._fill(target), target)
        self._epoch_loss.add(loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Fill in whole images once, and score each; returns what the network gave, also where nothing was hidden."""
        target = self.make_target(batch)
        output = self.decode_output(self._fill(target))
        loss = torch.stack([self.compute_loss(output[i : i + 1], target[i : i + 1]) for i in range(len(output))])
        self._rows.append((batch["index"], {"loss": loss, **self._score(output, target)}))
        return output

    test_step = validation_step

    def _fill(self, target: Tensor) -> Tensor:
        return self.apply_net(hide(target[:, :-1], target[:, -1:] > 0))

    def score(self, prediction: Tensor, batch: Batch) -> Rows:
        """Errors over the hidden pixels of each image in normalised units, and their R2; not defined where constant."""
        return self._score(prediction, self.make_target(batch))

    def _score(self, prediction: Tensor, target: Tensor) -> Rows:
        if prediction.device.type == "mps":  # has no float64
            prediction, target = prediction.cpu(), target.cpu()
        x, hidden = target[:, :-1].double(), target[:, -1:].double()
        n, error = hidden.sum((2, 3)), (prediction.double() - x) * hidden
        mean = ((x * hidden).sum((2, 3)) / n)[..., None, None]
        deviation = (((x - mean) * hidden) ** 2).sum((1, 2, 3))
        squares, n_values = (error**2).sum((1, 2, 3)), n[:, 0] * x.shape[1]
        constant = deviation <= n_values * (1e-6 * x.abs().amax((1, 2, 3))) ** 2
        r2 = torch.where(constant, torch.nan, 1 - squares / deviation)
        scores = {"mse": squares / n_values, "mae": error.abs().sum((1, 2, 3)) / n_values, "r2": r2}
        return scores | {"sum_squared_error": squares, "deviation": deviation}

    def aggregate(self, rows: Rows) -> tuple[dict[str, float], dict[str, int]]:
        """Means over the images for which a score is defined; `r2_pooled` is over all hidden pixels.

        Also when pooled, the deviation is from each image's own mean: an image's brightness is seen, and no merit.
        """
        metrics = {name: rows[name].nanmean().item() for name in SCORES}
        deviation = rows["deviation"].sum()
        metrics["r2_pooled"] = (1 - rows["sum_squared_error"].sum() / deviation).item() if deviation > 0 else torch.nan
        undefined = {name: count for name in SCORES if (count := int(rows[name].isnan().sum()))}
        return {name: value for name, value in metrics.items() if value == value}, undefined

    def draw(self, samples: list[dict[str, Any]]) -> Figure:
        """What the network saw, the image, what it filled in, and the error, all in normalised units."""
        shown = []
        for sample in samples:
            with torch.no_grad():
                target = self.make_target(self.as_batch(sample))
                seen = hide(target[:, :-1], target[:, -1:] > 0)
            arrays = {"image": seen[0].cpu().numpy(), "target": target[0, :-1].cpu().numpy()}
            shown.append({**arrays, "id": sample["id"], "prediction": sample["prediction"]})
        return draw_translation(shown)
