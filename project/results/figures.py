"""The plots of a report, as matplotlib figures and as data URIs."""

import base64
import csv
import io
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from project.results.compare import Comparison

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#e69f00", "#009e73", "0.6"  # Okabe and Ito: told apart by the colour-blind
MOST_GROUPS = 40
QUALITY = 85


def uri(figure: Figure, dpi: int = 100) -> str:
    """A figure as data URI."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    file = io.BytesIO()
    kind = "webp" if max(picture.size) < 16000 else "jpeg"  # WebP is limited to 16383 pixels
    picture.save(file, kind, quality=QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def mask_uri(mask: np.ndarray, n_classes: int, side: int = 132) -> str:
    """A small picture of a mask (H, W) in shades of grey, what is not annotated in blue."""
    shades = np.clip(mask.astype(float) / max(n_classes - 1, 1), 0, 1) * 255
    pixels = np.repeat(shades[..., None], 3, axis=2).astype(np.uint8)
    pixels[mask >= n_classes] = 0, 90, 200
    picture = Image.fromarray(pixels)
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    file = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST).save(file, "webp", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def read_history(path: Path) -> dict[str, np.ndarray]:
    """Column -> (epochs,) float64 of a history.csv, NaN for empty cells; nothing if there is none."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([_number(row.get(name)) for row in rows]) for name in (rows[0] if rows else {})}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def draw_curves(history: dict[str, np.ndarray], metrics: list[str], best: int | None) -> Figure | None:
    """Losses, leading metrics and the learning rate over the epochs.

    Args:
        history: Of `read_history`.
        metrics: Of the validation, as "dice".
        best: Epoch of the best checkpoint, from 0.
    """
    shown = [name for name in metrics if np.isfinite(history.get(f"val/{name}", np.array([]))).any()][:4]
    if not len(history.get("epoch", [])):
        return None
    epochs = history["epoch"] + 1
    n = 2 + len(shown)
    n_rows, n_columns = -(-n // 3), min(n, 3)
    figure = Figure(figsize=(4 * n_columns, 2.6 * n_rows), layout="constrained")
    plots = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes in plots[n:]:
        axes.set_axis_off()
    plots = plots[:n]
    for name, colour in (("train/loss", GREY), ("val/loss", BLUE)):
        if name in history:
            plots[0].plot(epochs, history[name], color=colour, label=name, marker=".", markersize=4)
    plots[0].legend(fontsize=8, frameon=False)
    plots[0].set_title("loss", fontsize=9)
    for axes, name in zip(plots[1:], shown, strict=False):
        axes.plot(epochs, history[f"val/{name}"], color=BLUE, marker=".", markersize=4)
        axes.set_title(f"val/{name}", fontsize=9, parse_math=False)
    plots[-1].plot(epochs, history.get("lr", np.full(len(epochs), np.nan)), color=ORANGE, marker=".", markersize=4)
    plots[-1].set_title("learning rate at the end of the epoch", fontsize=9)
    for axes in plots:
        if best is not None:
            axes.axvline(best + 1, color="0.8", linewidth=1, zorder=0)
        axes.set_xlabel("epoch", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
    return figure


def draw_intervals(comparison: Comparison, metric: str) -> Figure:
    """A metric of every entry with its 95 % interval, best first; runs over seeds or folds as single points."""
    entries = [entry for entry in comparison.entries if metric in entry.values]
    figure = Figure(figsize=(7.5, 0.6 + 0.33 * len(entries)), layout="constrained")
    axes = figure.subplots()
    for y, entry in enumerate(entries):
        colour = GREY if entry.first.identity.baseline else BLUE
        value, ends = entry.values[metric], entry.interval(metric)
        if ends:
            axes.plot(ends, [y, y], color=colour, linewidth=2.5, alpha=0.5)
        singles = [each.metrics[metric] for each in entry.runs if metric in each.metrics]
        if len(singles) > 1:
            axes.plot(singles, [y] * len(singles), ".", color=colour, markersize=5)
        axes.plot([value], [y], "o", color=colour, markersize=6)
        if entry is comparison.reference:
            axes.axvline(value, color="0.85", linewidth=1, zorder=0)
    axes.set_yticks(range(len(entries)), [entry.name[:50] for entry in entries], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(metric, fontsize=8, parse_math=False)
    axes.tick_params(labelsize=8)
    return figure


def draw_groups(values: dict[str, np.ndarray], score: str) -> Figure:
    """The score of every sample by group, and the median of each group.

    Args:
        values: Group -> scores of its samples, NaN where not defined.
        score: What it is called.
    """
    shown = dict(list(values.items())[:MOST_GROUPS])
    figure = Figure(figsize=(max(4.0, 0.35 * len(shown) + 1.5), 3.2), layout="constrained")
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    for x, each in enumerate(shown.values()):
        defined = each[np.isfinite(each)]
        axes.plot(x + rng.uniform(-0.2, 0.2, len(defined)), defined, ".", color=BLUE, alpha=0.5, markersize=4)
        if len(defined):
            axes.plot([x - 0.3, x + 0.3], [np.median(defined)] * 2, color="black", linewidth=1.5)
    names = [name if len(name) < 24 else f"...{name[-20:]}" for name in shown]
    axes.set_xticks(range(len(shown)), names, rotation=60, ha="right", fontsize=7, parse_math=False)
    axes.set_ylabel(score, fontsize=8, parse_math=False)
    axes.tick_params(axis="y", labelsize=8)
    return figure


def draw_residuals(joint: np.ndarray, low: np.ndarray, high: np.ndarray, names: list[str]) -> Figure:
    """Predicted against true values of all pixels, how the error depends on the truth, and calibration.

    Args:
        joint: (C', bins, bins) numbers of pixels by true and predicted value.
        low: (C',) where the bins begin.
        high: (C',) where they end.
        names: Of the channels.
    """
    figure = Figure(figsize=(11.5, 3.5 * len(joint)), layout="constrained")
    for line, counts, a, b, name in zip(
        figure.subplots(len(joint), 3, squeeze=False), joint, low, high, names, strict=False
    ):
        n = counts.sum()
        centres = a + (np.arange(len(counts)) + 0.5) * (b - a) / len(counts)
        with np.errstate(divide="ignore"):
            shown = np.log10(counts.T)
        line[0].imshow(shown, origin="lower", extent=(a, b, a, b), cmap="viridis", aspect="auto")
        line[0].plot([a, b], [a, b], color="white", linewidth=0.8)
        line[0].set_title(f"{name}: pixels (log)", fontsize=9, parse_math=False)
        line[0].set(xlabel="true", ylabel="predicted")
        total = counts.sum(1)
        used = total > n * 1e-5
        mean = (counts @ centres)[used] / total[used]
        deviation = np.sqrt(np.maximum((counts @ centres**2)[used] / total[used] - mean**2, 0))
        error, x = mean - centres[used], centres[used]
        line[1].axhline(0, color="0.7", linewidth=1)
        line[1].plot(x, error, color=BLUE)
        line[1].fill_between(x, error - deviation, error + deviation, color=BLUE, alpha=0.2, linewidth=0)
        line[1].set(xlabel="true", ylabel="predicted - true")
        line[1].set_title("residual: mean ± standard deviation", fontsize=9)
        total = counts.sum(0)
        used = total > n * 1e-5
        line[2].plot([a, b], [a, b], color="0.7", linewidth=1)
        line[2].plot(centres[used], (centres @ counts)[used] / total[used], color=BLUE)
        line[2].set(xlabel="predicted", ylabel="mean of the truth")
        line[2].set_title("calibration: on the line is right on average", fontsize=9)
        for axes in line:
            axes.tick_params(labelsize=7)
            axes.xaxis.label.set_size(8)
            axes.yaxis.label.set_size(8)
    return figure


def draw_levels(mean_true: np.ndarray, mean_predicted: np.ndarray) -> Figure:
    """Mean of each image as predicted against as it is, both (N,)."""
    figure = Figure(figsize=(3.6, 3.4), layout="constrained")
    axes = figure.subplots()
    ends = [min(mean_true.min(), mean_predicted.min()), max(mean_true.max(), mean_predicted.max())]
    axes.plot(ends, ends, color="0.7", linewidth=1)
    axes.plot(mean_true, mean_predicted, ".", color=BLUE, alpha=0.6)
    axes.set(xlabel="mean of the image, true", ylabel="predicted")
    axes.tick_params(labelsize=7)
    return figure


def draw_reliability(confidence: np.ndarray, right: np.ndarray, count: np.ndarray, what: str) -> Figure:
    """Share of right decisions by confidence, and how many there are.

    Args:
        confidence: (M,) mean of each bin, NaN where empty.
        right: (M,) share of right ones.
        count: (M,) decisions.
        what: That is decided on.
    """
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    left, axes = figure.subplots(1, 2)
    used = count > 0
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    left.plot(confidence[used], right[used], "o-", color=BLUE, markersize=4)
    error = np.sum(np.abs(confidence - right)[used] * count[used]) / max(count.sum(), 1)
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share that is right")
    left.set_title(f"below the line: too sure; ece {error:.3g}", fontsize=9)
    edges = np.linspace(0, 1, len(count) + 1)
    axes.stairs(count, edges, color=BLUE, fill=True, alpha=0.6)
    axes.set(yscale="log", xlabel="confidence", ylabel=what)
    return figure


def draw_matrix(matrix: np.ndarray, names: list[str], what: str) -> Figure:
    """A confusion matrix as shares of the true classes.

    Args:
        matrix: (K, K), rows are the truth.
        names: Of the classes.
        what: That is counted.
    """
    side = max(3.4, 0.5 * len(names) + 1.8)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 20:
        for (y, x), share in np.ndenumerate(shares):
            colour = "white" if share > 0.5 else "black"
            axes.text(x, y, f"{share:.2g}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{what}: share of the true class", fontsize=9)
    return figure
