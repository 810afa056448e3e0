"""Networks that give one answer per image, from encoders of segmentation_models_pytorch and from timm."""

from typing import Any

import timm
from segmentation_models_pytorch.encoders import (  # type: ignore[import-untyped]
    encoders,
    get_encoder,
    is_equivalent_to_timm_universal,
)
from torch import Tensor, nn

from project.errors import UserError, bullet_list, did_you_mean
from project.models.downloads import explain_download
from project.models.unused import drop_unused


class EncoderClassifier(nn.Module):
    """Encoder of a U-Net with a linear head: weights from segmentation or translation can be loaded.

    Last feature map -> mean over the image -> dropout -> linear.

    Args:
        encoder_name: As for `segmentation_models_pytorch.Unet`; "tu-..." takes one of timm.
        encoder_weights: "imagenet" or another name (True for "tu-" encoders) downloads weights; None starts without.
        in_channels: Of the images.
        classes: Number of outputs.
        depth: Halvings, 1 to 5 (3 to 5 for most encoders). Images should have 2**depth pixels in height and width;
            `size_divisor: 32` of the task sees to it.
        dropout: Share of the features that are dropped in training.
        hidden: Width of a hidden layer of the head, with ReLU; None is a linear head.

    Raises:
        UserError: There is no such encoder, it does not go with `depth` or `encoder_weights`, or, in `forward`, the
            images are too small for it.
    """

    def __init__(
        self,
        encoder_name: str = "resnet18",
        encoder_weights: str | bool | None = None,
        in_channels: int = 1,
        classes: int = 2,
        depth: int = 5,
        dropout: float = 0.0,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.name = f"classifier-{encoder_name}"  # as smp names its networks: `input_statistics` reads it
        self.depth = depth
        encoder: Any = _encoder(encoder_name, encoder_weights, in_channels, depth)
        self.encoder = encoder
        drop_unused(self, last_only=True)
        self.dropout = nn.Dropout(dropout)
        n = encoder.out_channels[-1]
        layers = [nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, classes)] if hidden else [nn.Linear(n, classes)]
        self.head = nn.Sequential(*layers) if hidden else layers[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes), unbounded."""
        try:
            features = self.encoder(x)[-1]
        except RuntimeError as error:
            # Some encoders manage with less than they should have.
            if (side := min(x.shape[-2:])) >= 2**self.depth:
                raise
            raise UserError(
                f"images of {x.shape[-2]} x {x.shape[-1]} pixels are too small for {self.depth} halvings.\n"
                f"Set size_divisor: {2**self.depth} for the task, or depth: {side.bit_length() - 1}"
            ) from error
        return self.head(self.dropout(features.mean((2, 3))))


def _encoder(name: str, weights: str | bool | None, in_channels: int, depth: int) -> nn.Module:
    if is_equivalent_to_timm_universal(name):  # smp's older names of timm's encoders
        name = name.replace("timm-", "tu-tf_" if "mobilenetv3" in name else "tu-")
    of_timm = name.startswith("tu-")
    if of_timm:
        _check_timm(name.removeprefix("tu-"), bool(weights), "encoder_name", "tu-")
    elif name not in encoders:
        known = [*encoders, *(f"tu-{model}" for model in timm.list_models())]
        raise UserError(f'encoder_name: there is no encoder "{name}".{did_you_mean(name, known)}')
    elif weights and weights not in (there := encoders[name]["pretrained_settings"]):
        raise UserError(f'encoder_weights: {name} has no weights "{weights}". There are:\n{bullet_list(there)}')
    try:
        # smp takes anything but None, False as well, for a wish for timm's weights.
        return get_encoder(name, in_channels, depth, (True if of_timm else weights) if weights else None)
    except ValueError as error:
        if explain_download(error):
            raise
        raise UserError(f'encoder_name: "{name}" with a depth of {depth} is not possible: {error}') from error


class TimmClassifier(nn.Module):
    """A classifier of timm, with messages that name the nearest model.

    Its weights are under "model.": a file of timm's goes in with `pretrained: {file: ..., part: model}`.

    Args:
        name: "resnet18", or with the name of its weights "resnet18.a1_in1k"; `timm.list_models("resnet*")`.
        in_channels: Of the images; pretrained weights are adapted.
        classes: Number of outputs.
        pretrained: Download weights.
        drop_rate: Dropout before the head.

    Raises:
        UserError: There is no such model, or there are no such weights.
    """

    def __init__(
        self, name: str, in_channels: int = 1, classes: int = 2, pretrained: bool = False, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        _check_timm(name, pretrained, "name")
        self.model = timm.create_model(
            name, pretrained=pretrained, in_chans=in_channels, num_classes=classes, drop_rate=drop_rate
        )
        self.pretrained_cfg = self.model.pretrained_cfg

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes), unbounded."""
        return self.model(x)

    def get_classifier(self) -> nn.Module:
        """Its head; all other layers can be frozen, see `project.models.finetuning`."""
        return self.model.get_classifier()  # type: ignore[operator]


def _check_timm(name: str, pretrained: bool, key: str, prefix: str = "") -> None:
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        close = did_you_mean(prefix + model, [prefix + known for known in timm.list_models()])
        raise UserError(f'{key}: timm has no model "{model}".{close}')
    if tag or pretrained:
        there = timm.list_models(f"{model}.*", pretrained=True)
        if not there and pretrained:
            raise UserError(f'{key}: timm has no pretrained weights for "{model}"; write pretrained: false')
        if tag and name not in there:
            raise UserError(
                f'{key}: "{model}" has no weights "{tag}".{did_you_mean(name, there)} There are:\n{bullet_list(there)}'
            )
