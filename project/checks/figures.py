"""The figure of `make check`: what the network and the loss really get."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from project.checks.context import Context
from project.data.crops import middle
from project.data.inspection.figures import stretch

SAMPLES, DRAWS = 4, 3
PANEL = 2.0  # inches


def draw_inputs(ctx: Context) -> Figure:
    """One row per sample: the image in the file, then augmented input and target of three epochs."""
    n = min(SAMPLES, len(ctx.train))
    draws = [_draw(ctx, n, epoch) for epoch in range(DRAWS)]
    is_dense = draws[0][2].ndim > 2  # a target per pixel has a panel; others are written above their input
    columns, row_height = 1 + DRAWS * (1 + is_dense), PANEL + 0.3
    figure = Figure(figsize=(columns * PANEL, n * row_height))
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.25 / (n * row_height), wspace=0.06, hspace=0.2)
    axes = np.asarray(figure.subplots(n, columns, squeeze=False))
    reader = ctx.train.reader
    for row, index in enumerate(draws[0][0].tolist()):
        image = reader.read("image", index, middle(reader.shapes["image"][index], 4096)).astype(np.float32)
        _panel(axes[row, 0], image, f"file: {reader.ids[index][-22:]}")
        for epoch, (_, inputs, targets) in enumerate(draws):
            first = 1 + epoch * (1 + is_dense)
            text = "" if is_dense else f": {ctx.task.describe_target(targets[row])}"
            _panel(axes[row, first], inputs[row].numpy(), f"input {epoch + 1}{text}")
            if is_dense:
                _panel(axes[row, first + 1], targets[row].numpy(), f"target {epoch + 1}", cmap="viridis")
    return figure


def _draw(ctx: Context, n: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions (n,), inputs (n, C, H, W) and targets of the same samples in an epoch, as float32 on the CPU."""
    torch.manual_seed(epoch)
    task = ctx.task.train()
    with torch.no_grad():
        batch = task.device_augmentation(ctx.batch(n, epoch, side=None))
        inputs, targets = task.intensity_augmentation(task.network_input(batch)), task.make_target(batch)
    return batch["index"].cpu(), inputs.float().cpu(), targets.float().cpu()


def _panel(axis: Axes, image: np.ndarray, title: str, cmap: str = "gray") -> None:
    """(C, H, W) or (H, W): three channels as colors, otherwise the first; the title names the range of values."""
    planes = image if image.ndim == 3 else image[None]
    shown = stretch(planes if len(planes) == 3 and cmap == "gray" else planes[:1])
    axis.imshow(shown[0] if len(shown) == 1 else shown.transpose(1, 2, 0), cmap=cmap, interpolation="nearest")
    if (finite := planes[np.isfinite(planes)]).size:
        title += f"\n{finite.min():.4g} to {finite.max():.4g}, mean {finite.mean():.3g}"
    axis.set_title(title, fontsize=6.5, pad=2)
    axis.set_axis_off()
