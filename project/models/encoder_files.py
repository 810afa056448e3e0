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
        path: Of the file.
    """

    name: str
    path: Path

    def pretrained(self, part: str = "encoder", depth: int = 5) -> dict[str, Any] | None:
        """Arguments of `project.models.pretrained.Pretrained`; None if the file lacks tensors.

        Args:
            part: Dotted name of the encoder in the network that the weights are for.
            depth: Its halvings.
        """
        theirs, encoder = set(read_weights(self.path)), get_encoder(self.name, 3, depth, None)
        inside = "model" if self.name.startswith("tu-") else ""
        ours = {tensor for tensor in encoder.get_submodule(inside).state_dict() if not is_counter(tensor)}
        if not ours <= theirs or len(encoder.out_channels) != depth + 1:  # the image, and a stage for each
            return None
        skip = uncommon_prefixes(sorted(tensor for tensor in theirs - ours if not is_counter(tensor)), ours)
        return {"file": str(self.path), "part": f"{part}.{inside}".rstrip("."), "skip": skip}


def find_encoder() -> EncoderFile | None:
    """The smallest file of `data/pretrained`, else of the cache; None where there is none.

    Raises:
        UserError: A file in `data/pretrained` cannot be read, or is not named after an encoder that it fits.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    for path in sorted((p for p in FOLDER.glob("*") if p.suffix in SUFFIXES), key=lambda path: path.stat().st_size):
        name = path.name.partition(".")[0]
        if not (found := _fitting(path, name)):
            meant = did_you_mean(name, [*encoders, *timm.list_models()])
            raise UserError(f'{path} does not fit an encoder "{name}" of timm or smp: name it after its own.{meant}')
        return found
    cached = [p for owner in ("timm", "smp-hub") for p in Path(HF_HUB_CACHE).glob(CACHED.format(owner))]
    cached.sort(key=lambda path: path.stat().st_size)
    names = {path: path.parents[2].name.split("--")[2].partition(".")[0] for path in cached}
    return next((found for path, name in names.items() if (found := _fitting(path, name))), None)


def _fitting(path: Path, name: str) -> EncoderFile | None:
    """The encoder of timm, or of smp, of that name whose tensors the file has all; what else it has is skipped."""
    names = [f"tu-{name}"] * (name in timm.list_models()) + [name] * (name in encoders)
    return next((found for n in names if (found := EncoderFile(n, path)).pretrained()), None)
