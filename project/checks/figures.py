"""The figure of `make check`: what the network and the loss really get."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from project.checks.context import Context
from project.data.crops import middle
from project.tasks.figures import draw_titled

SAMPLES, DRAWS = 4, 3


def draw_inputs(ctx: Context) -> Figure:
    """One row per sample: the image in the file, then augmented input and target of three epochs.

    The titles have the range of the values; a target that is not an image is in the title of its input.
    """
    reader, panels = ctx.train.reader, list[tuple[str, int, np.ndarray]]()
    draws = [_draw(ctx, min(SAMPLES, len(ctx.train)), epoch) for epoch in range(DRAWS)]
    for row, index in enumerate(draws[0][0].tolist()):
        panels.append(("file", index, reader.read("image", index, middle(reader.shapes["image"][index], 4096))))
        for epoch, (_, inputs, targets) in enumerate(draws, 1):
            is_image = targets.ndim > 2
            text = "" if is_image else f": {ctx.task.describe_target(targets[row])}"
            panels.append((f"input {epoch}{text}", index, inputs[row].numpy()))
            if is_image:
                panels.append((f"target {epoch}", index, targets[row].numpy()))
    samples, titles = [], []
    for title, index, array in panels:
        finite = array[np.isfinite(array)]
        values = f"{finite.min():.4g} to {finite.max():.4g}, mean {finite.mean():.3g}" if finite.size else "not finite"
        titles.append(f"{title}\n{values}")
        planes = array if array.ndim == 3 else array[None]
        samples.append({"id": reader.ids[index], "image": np.nan_to_num(planes, posinf=0, neginf=0)})
    return draw_titled(samples, titles, columns=len(panels) // len(draws[0][0]))


def _draw(ctx: Context, n: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions (n,), inputs (n, C, H, W) and targets of the same samples in an epoch, as float32 on the CPU."""
    torch.manual_seed(epoch)
    task = ctx.task.train()
    with torch.no_grad():
        batch = task.device_augmentation(ctx.batch(n, epoch, side=None))
        inputs, targets = task.intensity_augmentation(task.network_input(batch)), task.make_target(batch)
    return batch["index"].cpu(), inputs.float().cpu(), targets.float().cpu()
