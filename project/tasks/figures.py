"""Figures of what a task predicts."""

from collections.abc import Collection, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from project.colors import NOT_ANNOTATED, ClassLegend, class_colors

PANEL = 2.6  # inches


def draw_translation(samples: list[dict[str, Any]], channels: list[str] | None = None) -> Figure:
    """Input, target, prediction and error side by side, one row per sample and target channel.

    Target and prediction share one scale, from the 0.5th to the 99.5th percentile of the target; the error has its own,
    symmetric about zero. Every panel has a color bar in the units of the file.

    Args:
        samples: Dictionaries of `id`, `image` (C, H, W), `target` (C', H, W), `prediction` (C', H, W).
        channels: Names of the C' channels, which are shown where there are several.
    """
    rows = [(sample, c) for sample in samples for c in range(len(sample["target"]))]
    axes = _grid(len(rows), 4, PANEL * 1.15, PANEL, right=0.45)
    figure: Figure = axes[0, 0].figure
    for line, (sample, c) in zip(axes, rows, strict=True):
        image, target, prediction = sample["image"][0], sample["target"][c].astype(np.float32), sample["prediction"][c]
        name = f": {_short(channels[c])}" if channels and len(sample["target"]) == len(channels) > 1 else ""
        low, high = np.percentile(target, [0.5, 99.5])
        _panel(line[0], image, "input", *np.percentile(image, [0.5, 99.5]), cmap="gray")
        _panel(line[1], target, f"target{name}", low, high)
        _panel(line[2], prediction, "prediction", low, high)
        error = prediction - target
        limit = float(np.percentile(np.abs(error), 99.5)) or 1.0
        _panel(line[3], error, "prediction - target", norm=CenteredNorm(0, limit), cmap="RdBu_r")
        line[0].set_ylabel(_short(sample["id"]), fontsize=7)
    return figure


def draw_segmentation(
    samples: list[dict[str, Any]],
    names: list[str],
    ignore_index: int | None = None,
    background: int | None = None,
) -> Figure:
    """Input, truth, prediction and where they differ, one row per sample.

    Where objects are annotated they are drawn, each in a color of its own, and counted; else the classes are.

    Args:
        samples: Dictionaries of `id`, `image` (C, H, W), `mask` (H, W), `classes` (H, W) the predicted classes, and
            `instances` (H, W) with `objects` (H, W), the predicted ones, or None.
        names: Of the classes.
        ignore_index: Value of the mask that stands for "not annotated".
        background: Number of the background class, which is drawn dark; None where there is none.
    """
    colors, legend = class_colors(len(names), background), None
    if any(sample["objects"] is None for sample in samples):
        legend = ClassLegend(names, colors, 4 * PANEL, ignore_index is not None)
    axes = _grid(len(samples), 4, PANEL, PANEL + 0.15, below=legend.height + 0.15 if legend else 0.05)
    figure: Figure = axes[0, 0].figure
    for line, sample in zip(axes, samples, strict=True):
        picture, mask, classes = _picture(sample["image"]), sample["mask"], sample["classes"]
        ignored = mask == ignore_index if ignore_index is not None else np.zeros(mask.shape, bool)
        if sample["objects"] is not None:
            objects = sample["instances"], sample["objects"]
            truth, prediction = (_numbered(x) for x in objects)
            n_true, n_predicted = (len(np.unique(x[x > 0])) for x in objects)
            titles = [f"truth: {n_true} objects", f"prediction: {n_predicted} objects"]
        else:
            truth, prediction = (colors[np.where(x < len(names), x, 0)] for x in (mask, classes))
            titles = ["truth", "prediction"]
        differences, wrong = picture * 0.6 + 0.2, (mask != classes) & ~ignored
        differences[wrong] = (1.0, 0.15, 0.1)
        titles.append("wrong: red" if background is None else "missed: blue, too much or other: red")
        if background is not None:
            differences[wrong & (classes == background)] = (0.1, 0.3, 1.0)
        _plain(line[0], picture, "input")
        for axis, panel, title in zip(line[1:], (truth, prediction, differences), titles, strict=True):
            _plain(axis, np.where(ignored[..., None], NOT_ANNOTATED, panel), title)
        line[0].set_ylabel(_short(sample["id"]), fontsize=7)
    if legend:
        legend.draw(figure, loc="lower center")
    return figure


def draw_true_against_predicted(pairs: list[tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> Figure:
    """Predicted against true numbers, (N,) each, one point per image and one panel per pair and name."""
    figure = Figure(figsize=(4 * len(pairs), 4), layout="constrained")
    axes = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axis, name, (true, predicted) in zip(axes, names, pairs, strict=True):
        values = np.concatenate([true, predicted, [0.0] if true.min(initial=0) >= 0 else []])
        margin = 0.05 * np.ptp(values) or 1.0
        ends = values.min(initial=0) - margin, values.max(initial=0) + margin
        axis.plot(ends, ends, color="0.7", linewidth=1)
        axis.scatter(true, predicted, s=14, alpha=0.6)
        axis.set(xlabel=f"true {name}", ylabel="predicted", xlim=ends, ylim=ends, aspect="equal")
        error = predicted - true
        axis.set_title(f"{len(true)} images: {np.abs(error).mean():.3g} off, bias {error.mean():+.3g}", fontsize=9)
    return figure


def draw_titled(
    samples: list[dict[str, Any]], titles: list[str], wrong: Collection[int] = (), columns: int = 4
) -> Figure:
    """Images (C, H, W) with a title each, and a red frame around those whose numbers are in `wrong`."""
    axes = _grid(-(-len(samples) // columns), columns, PANEL, PANEL + 0.4, above=0.4, below=0.2).ravel()
    figure: Figure = axes[0].figure
    for number, (axis, sample, title) in enumerate(zip(axes, samples, titles, strict=False)):
        _plain(axis, _picture(sample["image"]), title)
        axis.set_xlabel(_short(sample["id"]), fontsize=6)
        for spine in axis.spines.values():
            spine.set(color="red" if number in wrong else "0.8", linewidth=3 if number in wrong else 1)
    for axis in axes[len(samples) :]:
        axis.axis("off")
    return figure


def draw_confusion(
    matrix: np.ndarray | None, names: list[str], curve: tuple[np.ndarray, ...], unit: str = "images"
) -> Figure:
    """Confusion matrix, and how far confidence can be believed.

    Args:
        matrix: (K, K) numbers of images or pixels, rows are the truth; None for several labels per image.
        names: Of the classes.
        curve: Mean confidence, accuracy and number of decisions of each bin, from `classification.reliability`.
        unit: What is counted; numbers of pixels are shown as shares of the true class.
    """
    side = max(3.6, 0.45 * len(names) + 1.6) if matrix is not None else 0.0
    figure = Figure(figsize=(side + 4, side or 3.6), layout="constrained")
    if matrix is not None:
        left, right = figure.subplots(1, 2, width_ratios=(side, 3.6))
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        left.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (y, x), count in np.ndenumerate(matrix) if len(names) <= 30 else ():
            text = str(count) if unit == "images" else f"{shares[y, x]:.2g}"
            color = "white" if shares[y, x] > 0.5 else "black"
            left.text(x, y, text, ha="center", va="center", fontsize=8, color=color)
        left.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8, parse_math=False)
        left.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
        left.set(xlabel="predicted", ylabel="true")
        left.set_title(f"{unit}; color: share of the true class", fontsize=9)
    else:
        right = figure.subplots()
    confidence, accuracy, count = curve
    used = count > 0
    right.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    right.plot(confidence[used], accuracy[used], marker="o", markersize=4)
    right.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share of right decisions", aspect="equal")
    error = np.sum(np.abs(confidence - accuracy)[used] * count[used]) / max(count.sum(), 1)
    right.set_title(f"below the line: overconfident; ece {error:.3g}", fontsize=9)
    return figure


def _grid(
    rows: int, columns: int, width: float, height: float, above: float = 0.25, below: float = 0.05, right: float = 0.1
) -> np.ndarray:
    """Axes (rows, columns) of a new figure, for panels of so many inches with room for titles and color bars.

    Placed by hand: matplotlib's constrained layout measures every text of the figure four times, which took seconds.
    """
    figure = Figure(figsize=(columns * width, rows * height + max(below - 0.05, 0)))
    x, y = figure.get_size_inches()
    hspace = (above + 0.05) / (height - above - 0.05)
    figure.subplots_adjust(0.3 / x, below / y, 1 - right / x, 1 - above / y, wspace=0.08, hspace=hspace)
    return np.asarray(figure.subplots(rows, columns, squeeze=False))


def _short(text: str) -> str:
    """An id that does not run into its neighbors."""
    return text if len(text) <= 32 else f"{text[:15]}…{text[-15:]}"


def _picture(image: np.ndarray) -> np.ndarray:
    """(C, H, W) raw -> (H, W, 3) from 0 to 1: three channels as colors, else the first; percentiles of the image."""
    shown = image.astype(np.float32) if len(image) == 3 else np.repeat(image[:1].astype(np.float32), 3, axis=0)
    low, high = np.percentile(shown, [0.5, 99.5])
    return np.clip((shown - low) / (high - low if high > low else 1), 0, 1).transpose(1, 2, 0)


def _numbered(objects: np.ndarray) -> np.ndarray:
    """(H, W) object numbers -> (H, W, 3), neighbors in different colors by chance."""
    colors = matplotlib.colormaps["hsv"](np.random.default_rng(0).permutation(97) / 97)[:, :3]
    return np.where((objects > 0)[..., None], colors[objects.astype(np.int64) % 97], 0.1)


def _plain(axis: Axes, picture: np.ndarray, title: str, **style: Any) -> Any:
    axis.set_title(title, fontsize=8)
    axis.set(xticks=[], yticks=[])
    return axis.imshow(picture, interpolation="nearest", **style)


def _panel(
    axis: Axes, image: np.ndarray, title: str, low: float | None = None, high: float | None = None, **style: Any
) -> None:
    if low is not None and high is not None:
        style |= {"vmin": low, "vmax": high if high > low else low + 1}
    shown = _plain(axis, image.astype(np.float32), title, **{"cmap": "viridis", **style})
    # At most seven characters, which fit between two panels: 11500, -2.9e6, 9e-5.
    label = FuncFormatter(lambda value, _: f"{value:.5g}".replace("e+0", "e").replace("e-0", "e-"))
    bar = axis.figure.colorbar(shown, ax=axis, shrink=0.85, ticks=MaxNLocator(5), format=label)
    bar.ax.tick_params(labelsize=6)
