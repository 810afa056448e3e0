"""Networks that give one answer per image, from encoders of segmentation_models_pytorch and from timm."""

from collections.abc import Callable
from typing import Any

import timm
from segmentation_models_pytorch.encoders import encoders, get_encoder  # type: ignore[import-untyped]
from torch import Tensor, nn

from project.errors import UserError, did_you_mean
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
    ) -> None:
        super().__init__()
        self.name = f"classifier-{encoder_name}"  # as smp names its networks: `input_statistics` reads it
        self.depth = depth
        if not encoder_name.startswith("timm-"):  # smp's older names
            _check_name(encoder_name, [*encoders, *(f"tu-{model}" for model in timm.list_models())], "encoder_name")
        # smp takes anything but None, False as well, for a wish for timm's weights.
        weights = encoder_weights or None
        self.encoder: Any = _build("encoder_name", lambda: get_encoder(encoder_name, in_channels, depth, weights))
        drop_unused(self, last_only=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.encoder.out_channels[-1], classes)

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


class TimmClassifier(nn.Module):
    """A classifier of timm.

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
        _check_name(name, timm.list_models(), "name")
        options: dict[str, Any] = {"in_chans": in_channels, "num_classes": classes, "drop_rate": drop_rate}
        self.model = _build("name", lambda: timm.create_model(name, pretrained, **options))
        self.pretrained_cfg = self.model.pretrained_cfg

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes), unbounded."""
        logits: Tensor = self.model(x)
        return logits

    def get_classifier(self) -> nn.Module:
        """Its head; all other layers can be frozen, see `project.models.finetuning`."""
        head: nn.Module = self.model.get_classifier()
        return head


def _check_name(name: str, known: list[str], key: str) -> None:
    model = name.partition(".")[0]
    if model not in known:
        raise UserError(f'{key}: there is no network "{model}".{did_you_mean(model, known)}')


def _build(key: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except (ValueError, KeyError, RuntimeError) as error:
        if explain_download(error):
            raise
        raise UserError(f"{key}: the network cannot be built: {error}") from error
