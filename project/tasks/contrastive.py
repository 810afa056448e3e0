"""Learning from images without labels: two views of one image are to look alike, and unlike those of all others."""

from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from project.data.batch import Tensors
from project.data.samplers import random_bits, random_stream
from project.errors import UserError
from project.metrics.pretraining import RetrievalMetrics
from project.tasks.base import Task
from project.tasks.figures import draw_titled


class ContrastiveTask(Task):
    """Recognize an image in another view of it: SimCLR, Chen et al. (2020), ICML.

    A view is made by `device_augmentation` and `intensity_augmentation`. The encoder learns to ignore what they change,
    so choose changes that mean nothing in these images. Negatives are the other images of a batch on one device: use
    large batches.

    It reads images alone: of `unlabeled.h5` where the dataset has one, else all training images. Validation compares
    each image of val.h5, as it is, with one view of every image; an image has the same view in every epoch and run with
    this seed. A classifier starts from it with `pretrained: {file: runs/resnet_simclr/latest, part: encoder, source:
    encoder}`.

    Args:
        net: Maps normalized (B, C, H, W) to (B, D), as an `EncoderClassifier` with `classes: 128` and `hidden: 256`:
            the head of two layers of the paper.
        temperature: Of the similarities.
        options: See `project.tasks.base.Task`.
    """

    kind = "pretraining"
    inputs = ("image",)
    default_metrics = (RetrievalMetrics,)
    n_drawn_samples: ClassVar[int] = 6

    def __init__(self, net: nn.Module, temperature: float = 0.2, size_divisor: int = 1, **options: Any) -> None:
        super().__init__(net, nn.Identity(), size_divisor=size_divisor, **options)
        if isinstance(self.device_augmentation, nn.Identity) and isinstance(self.intensity_augmentation, nn.Identity):
            raise UserError("two views of an image would be the same; set model.init_args.intensity_augmentation")
        if temperature <= 0:
            raise UserError(f"temperature is {temperature:g}; it is above 0")
        self.temperature = temperature

    def decode_output(self, output: Tensor) -> Tensor:
        """(B, D) -> of length 1: a prediction is a direction."""
        if output.ndim != 2:
            raise UserError(
                f"the network gives {tuple(output.shape[1:])} per image, and should give some numbers: take "
                "project.models.classifier.EncoderClassifier"
            )
        return functional.normalize(output, dim=1)

    def make_target(self, batch: Tensors) -> Tensor:
        """Another view of each image, normalized, (B, C, H, W)."""
        if self.training:
            return self._view(batch)
        on = [] if self.device.type == "cpu" else [self.device]
        views = []
        for position, index in enumerate(batch["index"].tolist()):
            with torch.random.fork_rng(on, device_type=self.device.type if on else "cuda"):
                number = random_bits(random_stream(self.seed, 0), index) >> 1
                torch.default_generator.manual_seed(number)
                if on:
                    torch.get_device_module(self.device).manual_seed(number)
                views.append(self._view({name: value[position : position + 1] for name, value in batch.items()}))
        return torch.cat(views)

    def _view(self, batch: Tensors) -> Tensor:
        view: Tensor = self.intensity_augmentation(self.network_input(self.device_augmentation(batch)))
        return view

    def forward_batch(self, batch: Tensors) -> tuple[Tensor, Tensor]:
        """Outputs for images and for another view of each; in training for two views."""
        if self.training:  # both pass together, so that batch normalization sees all of them
            first, second = self.apply_net(torch.cat([self._view(batch), self._view(batch)])).chunk(2)
            return first, second
        return self.apply_net(self.network_input(batch)), self.apply_net(self.make_target(batch))

    def compute_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """How well the outputs of two views of the same images find each other among all; Chen et al., eq. 1."""
        both, n = self.decode_output(torch.cat([output, target])), len(output)
        similarity = (both @ both.T / self.temperature).fill_diagonal_(-torch.inf)
        return functional.cross_entropy(similarity, torch.arange(2 * n, device=similarity.device).roll(n))

    def draw(self, samples: list[dict[str, Any]]) -> Figure:
        images, views = [], []
        for sample in samples:
            batch = self.as_batch(sample)
            with torch.no_grad():
                seen, view = self.network_input(batch), self.make_target(batch)
            images.append({"id": sample["id"], "image": seen[0].cpu().numpy()})
            views.append({"id": sample["id"], "image": view[0].cpu().numpy()})
        titles = [*["image"] * len(images), *["view"] * len(views)]
        return draw_titled([*images, *views], titles, columns=len(samples))
