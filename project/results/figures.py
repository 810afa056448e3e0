"""Figures of a report about runs."""

from contextlib import suppress
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from project.results.compare import Comparison

BLUE, ORANGE, GRAY = "#0072b2", "#e69f00", "0.6"  # Okabe and Ito: safe for color-blind readers
MOST_METRICS = 4  # with a curve


def draw_curves(epochs: list[dict[str, str]], metrics: list[str], best: int | None) -> Figure | None:
    """Losses, main metrics and the learning rate over the epochs of a history.csv; None without epochs.

    The epoch of the best checkpoint, from 0, is marked.
    """
    if not epochs or "epoch" not in epochs[0]:  # a spreadsheet may have saved it with semicolons
        return None
    history = {name: np.array([_number(row[name]) for row in epochs]) for name in epochs[0]}
    panels = {"loss": {"train/loss": GRAY, "val/loss": BLUE}}
    shown = [f"val/{name}" for name in metrics if np.isfinite(history.get(f"val/{name}", np.nan)).any()]
    panels |= {name: {name: BLUE} for name in shown[:MOST_METRICS]}
    panels["learning rate at the end of the epoch"] = {"lr": ORANGE}
    n_columns = min(len(panels), 3)
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(4 * n_columns, 2.6 * n_rows), layout="constrained")
    for i, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(n_rows, n_columns, i)
        for name, color in lines.items():
            if name in history:
                axes.plot(history["epoch"] + 1, history[name], color=color, label=name, marker=".", markersize=4)
        if best is not None:
            axes.axvline(best + 1, color="0.8", linewidth=1, zorder=0)
        _format(axes, title, "epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure


def _number(cell: Any) -> float:
    with suppress(ValueError, TypeError):  # a row that is too short or too long
        return float(cell)
    return float("nan")


def draw_intervals(comparison: Comparison, metric: str) -> Figure:
    """A metric of every entry with its 95 % interval, best first; runs over seeds or folds as single points."""
    entries = [entry for entry in comparison.entries if metric in entry.values]
    figure = Figure(figsize=(7.5, 0.6 + 0.33 * len(entries)), layout="constrained")
    axes = figure.subplots()
    for y, entry in enumerate(entries):
        color = GRAY if entry.first.identity.baseline else BLUE
        if ends := entry.interval(metric):
            axes.plot(ends, [y, y], color=color, linewidth=2.5, alpha=0.5)
        axes.plot([run.metrics[metric] for run in entry.runs], [y] * len(entry.runs), ".", color=color, markersize=5)
        axes.plot([entry.values[metric]], [y], "o", color=color, markersize=6)
        if entry is comparison.reference:
            axes.axvline(entry.values[metric], color="0.85", linewidth=1, zorder=0)
    _format(axes, x=metric)
    axes.set_yticks(range(len(entries)), [entry.name[:50] for entry in entries], parse_math=False)
    axes.set_ylim(len(entries) - 0.5, -0.5)  # the best at the top
    return figure


def draw_calibration(joint: np.ndarray, low: np.ndarray, high: np.ndarray, names: list[str]) -> Figure:
    """Predicted against true values of all pixels, and the mean of each by the other; a row per channel.

    `joint` has numbers of pixels (C', bins, bins) by true and predicted value, from `low` to `high`, (C',) each.
    """
    figure = Figure(figsize=(7.7, 3.5 * len(joint)), layout="constrained")
    rows = figure.subplots(len(joint), 2, squeeze=False)
    for axes, counts, a, b, name in zip(rows, joint, low, high, names, strict=False):
        values = a + (np.arange(len(counts)) + 0.5) * (b - a) / len(counts)
        with np.errstate(divide="ignore"):
            axes[0].imshow(np.log10(counts.T), origin="lower", extent=(a, b, a, b), cmap="viridis", aspect="auto")
        axes[0].plot([a, b], [a, b], color="white", linewidth=0.8)
        _format(axes[0], f"{name}: pixels (log)", "true", "predicted")
        axes[1].plot([a, b], [a, b], color="0.7", linewidth=1)
        for table, label, color in (
            (counts, "predicted, by true value", BLUE),
            (counts.T, "true, by predicted", ORANGE),
        ):
            total = table.sum(1)
            used = total > counts.sum() * 1e-5
            axes[1].plot(values[used], (table @ values)[used] / total[used], color=color, label=label)
        axes[1].legend(fontsize=8, frameon=False)
        _format(axes[1], "means; calibrated: orange on the gray line", "value", "mean of the other")
    return figure


def _format(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.set_xlabel(x, fontsize=8, parse_math=False)
    axes.set_ylabel(y, fontsize=8, parse_math=False)
    axes.tick_params(labelsize=8)
