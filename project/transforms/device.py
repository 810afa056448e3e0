"""Geometric augmentation of batches on the device: symmetries of the square, in training only."""

from typing import Literal

import torch
from torch import Tensor, nn

from project.errors import UserError

Batch = dict[str, Tensor]
ARRAYS = ("image", "target", "mask", "instances")
# torch knows few operations on these; pixels that are only moved may as well be called signed.
SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
TURNS = {"d4": [1, 1, 1], "flips": [0, 1, 1]}  # transpose, reverse rows, reverse columns


class DeviceGeometry(nn.Module):
    """Random symmetries of the square of a raw batch, different for each sample. Pixels are moved and keep their dtype.

    For machines whose GPU would wait for the CPUs; otherwise `data.transforms` does the same in the workers, and more.
    With both, both are applied. Random numbers come from torch's global generator on the CPU, which the task seeds for
    each step: a resumed run draws the same.

    Args:
        symmetry: "d4" samples one of the eight symmetries of the square; "flips" one of the four that images of any
            shape have: none, left-right, up-down, both.
    """

    def __init__(self, symmetry: Literal["d4", "flips"] = "d4") -> None:
        super().__init__()
        self.symmetry = symmetry

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        """Transform "image", and "target" (B, C, H, W), "mask" and "instances" (B, H, W) where there are, alike.

        Raises:
            UserError: `symmetry` is "d4" and the images are not square.
        """
        height, width = batch["image"].shape[-2:]
        if self.symmetry == "d4" and height != width:
            raise UserError(
                f"model.init_args.device_augmentation: images of {height} x {width} pixels have no quarter turns; set "
                "`symmetry: flips`, or square crops with `data.crop`."
            )
        turns = torch.randint(2, (len(batch["image"]), 3)) * torch.tensor(TURNS[self.symmetry])
        return batch | {role: turned(batch[role], turns) for role in ARRAYS if role in batch}


def turned(array: Tensor, turns: Tensor) -> Tensor:
    """Apply one of the symmetries of the square to each sample.

    Args:
        array: (B, ..., H, W) of any dtype; square where something is transposed.
        turns: (B, 3) of 0 and 1, on the CPU: transpose, then reverse rows, then reverse columns.

    Returns:
        The same shape, dtype and values.
    """
    pixels = array.view(SIGNED.get(array.dtype, array.dtype))
    transpose, rows, columns = turns.bool().to(pixels.device).view(-1, 3, *[1] * (pixels.ndim - 1)).unbind(1)
    if turns[:, 0].any():
        pixels = torch.where(transpose, pixels.mT, pixels)
    pixels = torch.where(rows, pixels.flip(-2), pixels)
    return torch.where(columns, pixels.flip(-1), pixels).view(array.dtype)
