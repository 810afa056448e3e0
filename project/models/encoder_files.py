"""Encoders whose pretrained weights are on this machine: files in data/pretrained, and the cache of Hugging Face."""

from pathlib import Path
from typing import Any, NamedTuple

import timm
from segmentation_models_pytorch.encoders import encoders, get_encoder  # type: ignore[import-untyped]

from project.errors import UserError, did_you_mean
from project.models.pretrained import is_counter, read_weights, uncommon_prefixes

SUFFIXES, CACHED = (".pth", ".pt", ".safetensors"), "models--{}--*/snapshots/*/model.safetensors"
FOLDER = Path("data/pretrained")
ADVICE = (
    f"there are no pretrained weights. Put a file of timm or smp, named after its encoder, into {FOLDER}/, such as "
    "resnet18.pth or tf_efficientnet_lite0.safetensors"
)


class EncoderFile(NamedTuple):
    """Weights of an encoder.

    Attributes:
        name: `encoder_name` of smp: "resnet18", "tu-convnext_atto".
        pretrained: Arguments of `project.models.pretrained.Pretrained` for a network that is the encoder.
    """

    name: str
    pretrained: dict[str, Any]


def find_encoder(part: str) -> EncoderFile | None:
    """The smallest file of `data/pretrained`, else of the cache; None where there is none.

    Args:
        part: Dotted name of the encoder in the network that the weights are for.

    Raises:
        UserError: A file in `data/pretrained` cannot be read, or is not named after an encoder that it fits.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    for path in sorted((p for p in FOLDER.glob("*") if p.suffix in SUFFIXES), key=lambda path: path.stat().st_size):
        name = path.name.partition(".")[0]
        if not (found := _fitting(path, name, part)):
            meant = did_you_mean(name, [*encoders, *timm.list_models()])
            raise UserError(f'{path} does not fit an encoder "{name}" of timm or smp: name it after its own.{meant}')
        return found
    cached = [p for owner in ("timm", "smp-hub") for p in Path(HF_HUB_CACHE).glob(CACHED.format(owner))]
    cached.sort(key=lambda path: path.stat().st_size)
    names = {path: path.parents[2].name.split("--")[2].partition(".")[0] for path in cached}
    return next((found for path, name in names.items() if (found := _fitting(path, name, part))), None)


def _fitting(path: Path, name: str, part: str) -> EncoderFile | None:
    """The encoder of timm, or of smp, of that name whose tensors the file has all; what else it has is skipped."""
    theirs = set(read_weights(path))
    names = [f"tu-{name}"] * (name in timm.list_models()) + [name] * (name in encoders)
    for encoder_name in names:
        encoder = get_encoder(encoder_name, 3, 5, None)
        inside = "model" if encoder_name.startswith("tu-") else ""
        ours = {tensor for tensor in encoder.get_submodule(inside).state_dict() if not is_counter(tensor)}
        if ours <= theirs and len(encoder.out_channels) == 6:  # five stages, and the image
            skip = uncommon_prefixes(sorted(tensor for tensor in theirs - ours if not is_counter(tensor)), ours)
            return EncoderFile(encoder_name, {"file": str(path), "part": f"{part}.{inside}".rstrip("."), "skip": skip})
    return None
