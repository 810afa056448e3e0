"""The pictures of `make check`: what the network really sees, and how it learns one batch."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from project.checks.verdicts import Context

SAMPLES, DRAWS = 4, 3
PANEL = 2.0  # inches
DPI = 110


def draw(ctx: Context, folder: Path) -> list[str]:
    """Write `sees.png` and, after the checks of the network, `learns.png`; returns their names."""
    figures = {"sees.png": sees(ctx)}
    if "fit" in ctx.notes or "rates" in ctx.notes:
        figures["learns.png"] = learns(ctx)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=DPI)
    return list(figures)


def sees(ctx: Context) -> Figure:
    """One row per sample: the image as in the file, then input and target of several epochs, as the loss gets them."""
    n = min(SAMPLES, len(ctx.train))
    ctx.task.train()
    draws = [_draw(ctx, n, epoch) for epoch in range(DRAWS)]
    dense = draws[0][2].ndim > 2  # a target for each pixel; else it is written above its input
    step = 2 if dense else 1
    width = 1 + DRAWS * step
    figure = Figure(figsize=(width * PANEL, n * (PANEL + 0.3)))
    figure.subplots_adjust(
        left=0.01, right=0.99, bottom=0.01, top=1 - 0.25 / (n * (PANEL + 0.3)), wspace=0.06, hspace=0.2
    )
    axes = np.asarray(figure.subplots(n, width, squeeze=False))
    reader = ctx.train.reader
    for row, index in enumerate(draws[0][0].tolist()):
        image = ctx.read("train", "image", index, 4096).astype(np.float32)
        _panel(axes[row, 0], image, f"file: {reader.ids[index][-22:]}")
    for epoch, (_, inputs, targets) in enumerate(draws):
        for row in range(n):
            target, place = targets[row], axes[row, 1 + epoch * step :]
            _panel(
                place[0],
                inputs[row].numpy(),
                f"input {epoch + 1}" + ("" if dense else f": {ctx.task.describe_target(target)}"),
            )
            if dense:
                _panel(place[1], target.numpy(), f"target {epoch + 1}", cmap="viridis")
    return figure


def _draw(ctx: Context, n: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions (n,), inputs (n, C, H, W) and targets of an epoch's first samples, as float32 on the CPU."""
    torch.manual_seed(epoch)
    batch = ctx.batch(n, epoch)
    with torch.no_grad():
        batch = ctx.task.device_augmentation(batch)
        inputs = ctx.task.intensity_augmentation(ctx.task.network_input(batch))
        targets = ctx.task.make_target(batch)
    return batch["index"].cpu(), inputs.float().cpu(), targets.float().cpu()


def learns(ctx: Context) -> Figure:
    """Loss against learning rate, and on one batch that is repeated."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    if "rates" in ctx.notes:
        rates, losses, chosen = ctx.notes["rates"]
        left.plot(rates, losses[: len(rates)], marker=".", color="#0072b2")
        left.axvline(chosen, color="black", linewidth=1, label=f"chosen {chosen:.2g}")
        if "suggestion" in ctx.notes:
            left.axvline(
                ctx.notes["suggestion"], color="#e69f00", linestyle="--", label=f"about {ctx.notes['suggestion']:.0e}"
            )
        finite = [loss for loss in losses if np.isfinite(loss)]
        if finite:
            left.set_ylim(min(finite) - 0.05 * abs(losses[0]), min(max(finite), 3 * abs(losses[0])) * 1.05)
        left.set(xscale="log", xlabel="learning rate", ylabel="loss", title="one step at each rate")
        left.legend(fontsize=8)
    if "fit" in ctx.notes:
        losses, constant = ctx.notes["fit"]
        right.plot(losses, color="#0072b2")
        right.axhline(constant, color="0.5", linestyle=":", label="constant answer")
        right.set(xlabel="step", ylabel="loss", title="one batch, repeated")
        right.legend(fontsize=8)
    return figure


def _panel(axis: Axes, image: np.ndarray, title: str, cmap: str = "gray") -> None:
    """(C, H, W) or (H, W): three channels as colours, else the first; the title says what values there are."""
    values = image if image.ndim == 3 else image[None]
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0, 1)
    if len(values) == 3 and cmap == "gray":
        shown = np.clip((values - low) / (high - low if high > low else 1), 0, 1).transpose(1, 2, 0)
    else:
        shown = values[0]
    axis.imshow(shown, cmap=cmap, vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")
    if finite.size:
        title += f"\n{finite.min():.4g} to {finite.max():.4g}, mean {finite.mean():.3g}"
    axis.set_title(title, fontsize=6.5, pad=2)
    axis.set_xticks([])
    axis.set_yticks([])
