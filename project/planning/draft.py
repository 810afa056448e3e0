"""What a decision of a plan depends on: data, machine, task, time, and the decisions before it."""

import math
from dataclasses import dataclass, field
from typing import Any

from project.planning.fingerprint import Fingerprint
from project.planning.machine import Machine

CONTEXT = 3  # the network should see so many structures across


@dataclass(frozen=True)
class Draft:
    """What a decision may depend on; `values` are those decided before, by key."""

    data: Fingerprint
    machine: Machine
    task: str
    minutes: float
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def structure(self) -> float:
        """Diameter of objects or structures in pixels; of large ones where objects are annotated."""
        objects = self.data.objects if self.task == "segmentation" else None
        return objects.large_diameter if objects else self.data.appearance.structure

    @property
    def depth(self) -> int:
        """Halvings of a U-Net: as many as it takes to see `CONTEXT` structures, and as the images allow."""
        wanted = next((d for d in range(2, 6) if receptive_field(d) >= CONTEXT * self.structure), 5)
        return max(1, min(wanted, int(math.log2(max(self.data.shortest / 4, 2)))))

    def steps(self, width: int | None, pixels: float | None = None) -> float:
        """Training steps of a U-Net in the time of the plan, with a fifth for validation and start.

        `width` None is that with the pretrained encoder. `pixels` are those of a batch, by default of the one decided.
        """
        crop = self.values.get("data.crop")
        pixels = pixels or self.values["data.batch_size"] * (crop**2 if crop else self.data.area)
        seconds = self.machine.encoder_seconds if width is None else self.machine.seconds[width]
        return 0.8 * 60 * self.minutes / (seconds * pixels / 1e6)


def receptive_field(depth: int) -> int:
    """Of `project.models.unet.UNet` in pixels: two convolutions on each level down and up."""
    return 13 * 2**depth - 8


def power_of_two(value: float) -> int:
    """The largest power of two that is not above a value, at least 1."""
    return 2 ** max(0, int(math.log2(max(value, 1))))
