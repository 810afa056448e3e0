"""The machine that trains: its device and speed, measured in seconds."""

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from project.models.encoder_files import EncoderFile

CROP, BATCH, STEPS = 128, 4, 3  # of a measurement; the first step is not timed
WIDTHS = (8, 16, 32)  # of the U-Nets that a plan chooses from
DECODER = [128, 64, 32, 16, 16]  # channels of the U-Net that a pretrained encoder gets: half of smp's, for faster steps
FASTER = 1.2  # times as fast as float32: bfloat16 then pays


@dataclass(frozen=True)
class Machine:
    """A machine."""

    device: str = "cpu"  # or "cuda"
    # Width of a U-Net -> seconds that a training step takes per million pixels of its batch.
    seconds: dict[int, float] = field(default_factory=lambda: {8: 1.0, 16: 1.5, 32: 4.0})
    bf16_speed: float = 1.0  # of a step, relative to float32
    encoder: "EncoderFile | None" = None  # pretrained weights on this machine
    encoder_seconds: float = math.inf  # as `seconds`, of a U-Net with that encoder in float32

    @property
    def mixed(self) -> bool:
        """Whether trainings are faster in mixed precision."""
        return self.bf16_speed > FASTER


def measure_machine() -> Machine:
    """Train some steps of each candidate network on random images; a few seconds."""
    import torch
    from segmentation_models_pytorch import Unet  # type: ignore[import-untyped]

    from project.models.encoder_files import find_encoder
    from project.models.unet import UNet

    device = "cuda" if torch.cuda.is_available() else "cpu"
    speed = _seconds(UNet(1, 1, WIDTHS[1]), device, False) / _seconds(UNet(1, 1, WIDTHS[1]), device, True)
    seconds, encoder = {w: _seconds(UNet(1, 1, w), device, speed > FASTER) for w in WIDTHS}, find_encoder()
    if encoder is None:
        return Machine(device, seconds, speed)
    net = Unet(encoder.name, encoder_weights=None, in_channels=1, decoder_channels=DECODER)
    return Machine(device, seconds, speed, encoder, _seconds(net, device, False))


def _seconds(net: "nn.Module", device: str, mixed: bool) -> float:
    import torch

    batch = BATCH if device == "cpu" else 8 * BATCH
    net = net.to(device).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 1, CROP, CROP, device=device)
    optimizer, times = torch.optim.AdamW(net.parameters()), []
    for _ in range(STEPS):
        started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            loss = net(images).float().square().mean()
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:]) / (batch * CROP**2 / 1e6)
