"""Geometric augmentation of batches on the device: symmetries of the square and affine maps, in training only."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from project.errors import UserError

Batch = dict[str, Tensor]
INTERPOLATED, NEAREST = ("image", "target"), ("mask", "instances")
# torch knows few operations on these; pixels that are only moved may as well be called signed.
SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
TURNS = {"d4": [1, 1, 1], "flips": [0, 1, 1], "none": [0, 0, 0]}  # transpose, reverse rows, reverse columns


class DeviceGeometry(nn.Module):
    """Random symmetries of the square and affine maps of a raw batch, different for each sample.

    For machines whose GPU would wait for the CPUs; otherwise `data.transforms` does the same in the workers. With both,
    both are applied.

    Parameters are those of albumentations' `D4` and `Affine`, applied in this order but as one map: pixels are
    interpolated once. Outside, the image is mirrored without repeating the edge (OpenCV's `BORDER_REFLECT_101`).
    Symmetries alone move pixels and keep the dtype. Random numbers come from torch's global generator on the CPU, which
    the task seeds for each step: a resumed run draws the same.

    Args:
        symmetry: "d4" samples one of the eight symmetries of the square; "flips" one of the four that images of any
            shape have: none, left-right, up-down, both.
        rotate: Range of angles in degrees, counterclockwise.
        scale: Range of factors, sampled for x and y separately; 0.5 is half the size.
        translate: Range of shifts as a share of width and height, sampled for x and y separately; as
            `translate_percent`, but not rounded to pixels.

    Raises:
        UserError: A range is reversed, or holds factors that are not above 0.
    """

    def __init__(
        self,
        symmetry: Literal["d4", "flips", "none"] = "d4",
        rotate: tuple[float, float] = (0.0, 0.0),
        scale: tuple[float, float] = (1.0, 1.0),
        translate: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        for name, (low, high) in {"rotate": rotate, "scale": scale, "translate": translate}.items():
            if not low <= high or (name == "scale" and low <= 0):
                rule = "the lower end comes first, and factors are above 0"
                raise UserError(f"model.init_args.device_augmentation: {name} is {[low, high]}; {rule}")
        self.symmetry, self.rotate, self.scale, self.translate = symmetry, rotate, scale, translate
        self.affine = (*rotate, *scale, *translate) != (0, 0, 1, 1, 0, 0)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        """Transform a batch.

        Args:
            batch: "image", optionally "target" (B, C, H, W), "mask" and "instances" (B, H, W), of any dtype.

        Returns:
            The same shapes and units. Where pixels are interpolated, image and target are float32, and masks take the
            nearest pixel; everything else is unchanged.

        Raises:
            UserError: `symmetry` is "d4" and the images are not square.
        """
        image = batch["image"]
        height, width = image.shape[-2:]
        if self.symmetry == "d4" and height != width:
            raise UserError(
                f"model.init_args.device_augmentation: images of {height} x {width} pixels have no quarter turns; set "
                "`symmetry: flips`, or square crops with `data.crop`."
            )
        turns = torch.randint(2, (len(image), 3)) * torch.tensor(TURNS[self.symmetry])
        moved = {role: batch[role] for role in (*INTERPOLATED, *NEAREST) if role in batch}
        if self.symmetry != "none":
            moved = {role: turned(array, turns) for role, array in moved.items()}
        if self.affine:
            with torch.autocast(image.device.type, enabled=False):
                grid = self._grid(len(image), height, width, image.device)
                moved = {role: _sampled(array, grid, role in NEAREST) for role, array in moved.items()}
        return batch | moved

    def _grid(self, n: int, height: int, width: int, device: torch.device) -> Tensor:
        """Source of each pixel, (B, H, W, 2), as `grid_sample` takes it: x, y from -1 to 1."""

        def uniform(low: float, high: float, unit: float = 1.0) -> Tensor:
            return unit * (low + (high - low) * torch.rand(n, dtype=torch.float64))

        angle = uniform(*self.rotate).deg2rad()
        scale = torch.stack([uniform(*self.scale), uniform(*self.scale)], 1)
        shift = torch.stack([uniform(*self.translate, width), uniform(*self.translate, height)], 1)[..., None]
        # From pixels of the result to those of the original, relative to the center: the inverse of
        # `albumentations.Affine`; a few numbers per sample, so in float64 on the CPU.
        rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
        linear = torch.diag_embed(1 / scale) @ rotation
        half = torch.tensor([[max(width - 1, 1)], [max(height - 1, 1)]]) / 2
        maps = (torch.cat([linear, -linear @ shift], 2) / half).float().to(device)[..., None, None]
        (xx, xy, x0), (yx, yy, y0) = (row.unbind(1) for row in maps.unbind(1))
        x = (torch.arange(width, device=device) - (width - 1) / 2)[None, None, :]
        y = (torch.arange(height, device=device) - (height - 1) / 2)[None, :, None]
        return torch.stack([xx * x + xy * y + x0, yx * x + yy * y + y0], -1)


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


def _sampled(array: Tensor, grid: Tensor, nearest: bool) -> Tensor:
    """(B, ..., H, W) sampled at a grid; masks keep their dtype."""
    # Object numbers beyond 2 ** 24 do not fit into float32.
    exact = torch.float64 if nearest and array.element_size() > 2 else torch.float32
    values = (array.unsqueeze(1) if array.ndim == 3 else array).to(exact)
    moved = functional.grid_sample(
        values, grid.to(exact), "nearest" if nearest else "bilinear", "reflection", align_corners=True
    ).view(array.shape)
    return moved.to(array.dtype) if nearest else moved
