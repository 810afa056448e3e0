"""Pictures of what a task does, as matplotlib figures."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure

PANEL = 2.6  # inches


def draw_translation(samples: list[dict[str, Any]]) -> Figure:
    """Input, target, prediction and error side by side, one row per sample and target channel.

    Target and prediction share one scale, from the 0.5th to the 99.5th percentile of the target; the error has its own,
    symmetric about zero. Every panel has a colour bar in the units of the file.

    Args:
        samples: Dictionaries of `id`, `image` (C, H, W), `target` (C', H, W), `prediction` (C', H, W).
    """
    rows = [(sample, c) for sample in samples for c in range(len(sample["target"]))]
    figure = Figure(figsize=(4 * PANEL * 1.15, len(rows) * PANEL), layout="constrained")
    axes = np.asarray(figure.subplots(len(rows), 4, squeeze=False))
    for line, (sample, channel) in zip(axes, rows, strict=True):
        image, target = sample["image"][0], sample["target"][channel].astype(np.float32)
        prediction = sample["prediction"][channel]
        low, high = np.percentile(target, [0.5, 99.5])
        _panel(line[0], image, "input", *np.percentile(image, [0.5, 99.5]), cmap="gray")
        _panel(line[1], target, "target", low, high)
        _panel(line[2], prediction, "prediction", low, high)
        error = prediction - target
        limit = float(np.percentile(np.abs(error), 99.5)) or 1.0
        _panel(line[3], error, "prediction - target", norm=CenteredNorm(0, limit), cmap="RdBu_r")
        line[0].set_ylabel(sample["id"], fontsize=7)
    return figure


def _panel(
    axis: Axes, image: np.ndarray, title: str, low: float | None = None, high: float | None = None, **style: Any
) -> None:
    if low is not None and high is not None:
        style |= {"vmin": low, "vmax": high if high > low else low + 1}
    shown = axis.imshow(image.astype(np.float32), interpolation="nearest", **{"cmap": "viridis", **style})
    bar = axis.figure.colorbar(shown, ax=axis, shrink=0.85)
    bar.ax.tick_params(labelsize=6)
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
