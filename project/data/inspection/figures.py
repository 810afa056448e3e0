"""The pictures of an inspection as PNG: histograms, brightness of splits and groups, contact sheets."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, to_rgba_array
from matplotlib.figure import Figure

from project.colors import NOT_ANNOTATED, ClassLegend, class_colors
from project.data.inspection.rows import Key, Row
from project.data.inspection.tables import shown_groups
from project.data.split_metadata import ARRAYS
from project.data.statistics import Histogram
from project.data.store import SplitReader
from project.formatting import format_number, shorten

COLOURS = {"train": "#0072b2", "val": "#e69f00", "test": "#009e73"}  # Okabe and Ito: told apart by the colour-blind
OUTLINES = ("#ff2d2d", "#00b4ff", "#ff9500", "#2ecc40", "#ff2dff", "#e0c000")  # seen on black and on white
PIXELS = ("image", "target")  # the arrays that hold intensities
SHOWN = 12  # samples on a contact sheet
BINS = 200
PLOTS = 24  # channels with histograms at most: a stack can have hundreds
POINTS = 200  # images of one split and group that are drawn one by one
CUT = (0.5, 99.5)  # percentiles shown as black and white
# Inches: a panel, the space between panels, colour bar with numbers, title, and the whole sheet.
PANEL, NARROWEST, WIDEST, GAP, BAR, TITLE = 2.4, 1.0, 4.8, 0.15, 0.6, 0.42
SHEET, HEADING, HEADING_WIDTH = 14.0, 0.9, 8.0
DPI = 110
MOST_PIXELS = int(PANEL * DPI)  # of a panel along one side: outlines one pixel wide would vanish in a larger one


def draw(
    readers: dict[str, SplitReader],
    histograms: dict[Key, dict[str, Histogram]],
    report: dict[str, Any],
    rows: list[Row],
    folder: Path,
) -> list[str]:
    """Draw all pictures into `folder`.

    Returns:
        Their file names.
    """
    figures = {
        "histograms.png": draw_histograms(readers, histograms, report),
        "brightness.png": draw_brightness(rows, report),
    }
    for split, reader in readers.items():
        figures[f"contact_{split}.png"] = draw_contact_sheet(reader, f"{report['dataset']}, {split}")
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=DPI)
    return list(figures)


def draw_histograms(
    readers: dict[str, SplitReader], histograms: dict[Key, dict[str, Histogram]], report: dict[str, Any]
) -> Figure:
    """Share of the pixels by value, a line per split: the bulk, and the whole range with a logarithmic axis."""
    histograms = dict(list(histograms.items())[:PLOTS])
    figure = Figure(figsize=(11, 0.6 + 2.7 * len(histograms)), layout="constrained")
    plots = figure.subplots(len(histograms), 2, squeeze=False)
    for (bulk, whole), (key, by_split), entry in zip(plots, histograms.items(), report["channels"], strict=False):
        # A name may hold dollar signs, which would be formulae.
        bulk.set_title(f"{'/'.join(key)}: {entry['text']}", fontsize=9, loc="left", parse_math=False)
        for axes in (bulk, whole):
            axes.set_ylabel("share of pixels per bin", fontsize=8)
            axes.set_xlabel(f"value of {key[1]}", fontsize=8, parse_math=False)
            axes.tick_params(labelsize=8)
            axes.grid(color="0.9", linewidth=0.6)
            axes.set_axisbelow(True)
        if entry["min"] is None:
            continue
        ranges = _bulk(entry), (entry["min"], entry["max"])
        edges = [_edges(entry, *ends) for ends in ranges]
        for split, histogram in by_split.items():
            counts = _binned(histogram, readers[split], key, edges)
            for axes, ends, own in zip((bulk, whole), edges, counts, strict=True):
                share = own / max(histogram.n, 1)
                axes.stairs(share, ends, color=COLOURS[split], linewidth=1.3, label=split, fill=False)
        whole.set_yscale("log")
        cuts = entry["splits"].get("train", {}).get("percentiles")
        if cuts:
            whole.axvspan(cuts["0.1"], cuts["99.9"], color=COLOURS["train"], alpha=0.07, label="0.1 to 99.9 % of train")
        whole.legend(fontsize=8, frameon=False)
        whole.set_title("left: 98 % of the pixels; right: all, logarithmic", fontsize=9, loc="right", color="0.4")
    left_out = len(report["channels"]) - len(histograms)
    more = f" (first {PLOTS} channels, {left_out} left out)" if left_out else ""
    figure.suptitle(f"{report['dataset']}: pixel values{more}", fontsize=11, parse_math=False)
    return figure


def _bulk(entry: dict[str, Any]) -> tuple[float, float]:
    """From the lowest 1st to the highest 99th percentile of the splits."""
    cuts = [s["percentiles"] for s in entry["splits"].values() if "percentiles" in s]
    return min(c["1"] for c in cuts), max(c["99"] for c in cuts)


def _edges(entry: dict[str, Any], low: float, high: float) -> np.ndarray:
    """Bin edges over a range; for integers each bin holds equally many of the values that occur."""
    if high == low:
        return np.array([low - 0.5, low + 0.5])
    if entry["dtype_max"] is None:
        return np.linspace(low, high, BINS + 1)
    # A bin narrower than the usual distance between values, or no multiple of it, would show a comb.
    spread = (entry["max"] - entry["min"]) / (entry["n_distinct"] - 1)
    distance = int(np.ceil(spread / entry["step"])) * entry["step"]
    width = distance * int(np.ceil((high - low + 1) / (BINS * distance)))
    return np.arange(np.floor(low), high + width + 1, width) - 0.5


def _binned(histogram: Histogram, reader: SplitReader, key: Key, edges: list[np.ndarray]) -> list[np.ndarray]:
    """Counts for each of several sets of bin edges."""
    if histogram.exact:
        return [np.histogram(np.arange(len(histogram.counts)), e, weights=histogram.counts)[0] for e in edges]
    # The histogram of floats has bins of 0.4 % of the value: too coarse for a narrow range far from zero.
    channel, totals = reader.channel_names(key[0]).index(key[1]), [np.zeros(len(e) - 1) for e in edges]
    for index in range(len(reader)):
        plane = reader.read(key[0], index)[channel].astype(np.float64)
        finite = plane[np.isfinite(plane)]
        for total, ends in zip(totals, edges, strict=True):
            total += np.histogram(finite, ends)[0]
    return totals


def draw_brightness(rows: list[Row], report: dict[str, Any]) -> Figure:
    """Mean of every image by group, or by split, in the colour of its split; boxes are quartiles, lines medians."""
    entries = report["channels"][:PLOTS]
    columns = shown_groups(report) or list(report["splits"])
    by = "batch" if report["groups"] else "split"
    figure = Figure(figsize=(max(7.0, min(11.0, 2.5 + 0.75 * len(columns))), 0.5 + 2.6 * len(entries)))
    figure.set_layout_engine("constrained")
    plots = figure.subplots(len(entries), 1, squeeze=False)[:, 0]
    for axes, entry in zip(plots, entries, strict=True):
        for x, name in enumerate(columns):
            own = [row for row in rows if getattr(row, by) == name]
            _draw_column(axes, x, own, (entry["role"], entry["channel"]))
        names = [shorten(name) or "(no folder)" for name in columns]
        crowded = sum(map(len, names)) > 90
        axes.set_xticks(
            range(len(columns)), names, fontsize=8, rotation=25 * crowded, ha="right" if crowded else "center"
        )
        for label in axes.get_xticklabels():
            label.set_parse_math(False)
        axes.set_xlim(-0.6, len(columns) - 0.4)
        axes.set_title(
            f"{entry['role']}/{entry['channel']}: mean of each image", fontsize=9, loc="left", parse_math=False
        )
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
    for split in report["splits"]:
        plots[0].scatter([], [], s=14, color=COLOURS[split], label=split)
    plots[0].legend(fontsize=8, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    return figure


def _draw_column(axes: Axes, x: int, rows: list[Row], key: Key) -> None:
    known = [(row.split, mean) for row in rows if (mean := row.values[key]["mean"]) is not None]
    if not known:
        return
    low, middle, high = np.percentile([mean for _, mean in known], (25, 50, 75))
    axes.bar(x, high - low, 0.6, low, color="0.92", edgecolor="0.75", linewidth=0.8, zorder=1)
    axes.hlines(middle, x - 0.3, x + 0.3, color="0.25", linewidth=1.5, zorder=3)
    for split, colour in COLOURS.items():
        means = np.sort([mean for own, mean in known if own == split])
        if not len(means):
            continue
        # Evenly spaced in rank, the extremes among them; side by side, as far as there is room.
        means = means[np.unique(np.linspace(0, len(means) - 1, min(POINTS, len(means))).round().astype(int))]
        aside = (np.arange(len(means)) * 0.618 % 1 - 0.5) * 0.4 * (len(means) > 1)
        axes.scatter(x + aside, means, s=9 if len(means) > 20 else 22, color=colour, alpha=0.75, linewidths=0, zorder=2)


def draw_contact_sheet(reader: SplitReader, title: str) -> Figure:
    """Samples evenly spaced over a split: input, target, and objects or classes drawn over the input."""
    chosen = np.unique(np.linspace(0, len(reader) - 1, min(SHOWN, len(reader))).round().astype(int)).tolist()
    roles = [role for role in ARRAYS if role in reader.dtypes]
    shapes = [reader.shapes["image"][index] for index in chosen]
    width = float(np.clip(max(PANEL * s[-1] / s[-2] for s in shapes), NARROWEST, WIDEST))
    # A colour bar stands beside input and target only.
    offsets = np.cumsum([0.0, *(width + (BAR if role in PIXELS else GAP) for role in roles)]).tolist()
    cell, row = offsets.pop() + GAP, PANEL + TITLE + GAP
    per_row = int(np.clip(SHEET // cell, 1, len(chosen)))
    wide = max(per_row * cell + GAP, HEADING_WIDTH)
    legend = _legend(reader, wide)
    heading = HEADING + (legend.height + GAP if legend else 0)
    high = heading + -(-len(chosen) // per_row) * row
    figure = Figure(figsize=(wide, high))
    figure.text(
        GAP / wide, 1 - GAP / high, _heading(reader, title, len(chosen)), fontsize=9, va="top", parse_math=False
    )
    if legend:
        legend.draw(
            figure, loc="upper left", bbox_to_anchor=(GAP / wide, 1 - HEADING / high), borderaxespad=0, borderpad=0
        )
    for position, index in enumerate(chosen):
        top = high - heading - TITLE - position // per_row * row
        for role, offset in zip(roles, offsets, strict=True):
            # The panel has exactly the shape of the image, so that title and bar stand close to it.
            h, w = reader.shapes[role][index][-2:]
            panel_w, panel_h = w * min(width / w, PANEL / h), h * min(width / w, PANEL / h)
            left = GAP + position % per_row * cell + offset
            axes = _axes(figure, left, top, panel_w, panel_h)
            name = shorten(reader.ids[index]) if role == roles[0] else ""
            draw_panel = _draw_image if role in PIXELS else _draw_overlay
            what, ends = draw_panel(axes, reader, role, index)
            axes.set_title(f"{name}\n{what}", fontsize=7, loc="left", pad=3, parse_math=False)
            if ends:
                _draw_bar(_axes(figure, left + panel_w + 0.05, top, 0.08, panel_h), *ends)
    return figure


def _legend(reader: SplitReader, width: float) -> ClassLegend | None:
    """Names and colours of the classes of the mask."""
    names = (reader.attributes.get("classes") or {}).get("mask")
    if not names or "mask" not in reader.dtypes:
        return None
    return ClassLegend(names, _class_colors(reader), width, reader.attributes.get("ignore_index") is not None)


def _class_colors(reader: SplitReader) -> np.ndarray:
    names = (reader.attributes.get("classes") or {}).get("mask", [])
    background = reader.attributes.get("background")
    return class_colors(len(names), None if background is None else names.index(background))


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches from the lower left corner; `top` is their upper edge."""
    wide, high = figure.get_size_inches()
    return figure.add_axes((left / wide, (top - height) / high, width / wide, height / high), xticks=[], yticks=[])


def _heading(reader: SplitReader, title: str, shown: int) -> str:
    channels = "; ".join(f"{role}: {_shown_channels(reader, role)}" for role in PIXELS if role in reader.dtypes)
    return (
        f"{title}: {shown} of {len(reader)} samples, evenly spaced. Above each image: its smallest..largest value.\n"
        f"Black and white are the {CUT[0]:g} and {CUT[1]:g} percentiles of each image and channel (see the bar):\n"
        f"compare brightness by the numbers, not by the looks.\n{channels}"
    )


def _shown_channels(reader: SplitReader, role: str) -> str:
    names = reader.channel_names(role)
    if len(names) == 3:
        return f"{', '.join(names)} as red, green, blue"
    return names[0] if len(names) == 1 else f"{names[0]}, the first of {len(names)} channels"


def _thin(array: np.ndarray) -> np.ndarray:
    """Every n-th pixel, so that one pixel of the array is at least one of the picture."""
    step = -(-max(array.shape[-2:]) // MOST_PIXELS)
    return array[..., ::step, ::step]


def stretched(planes: np.ndarray, ends: np.ndarray | None = None) -> tuple[np.ndarray, float, float]:
    """(C, H, W) -> the same as float64 from 0 to 1, with `CUT` at 0 and 1, and these two values of the first channel.

    A photograph (8-bit colour) has one scale for its three channels, which keeps the hues.

    Args:
        planes: (C, H, W); NaN and infinities become NaN. Large ones are thinned out.
        ends: (C, 2) or (1, 2) values that become 0 and 1, in place of the percentiles of these planes.
    """
    if ends is None:
        known = [planes] if planes.dtype == np.uint8 else list(planes)
        known = [values[np.isfinite(values)].astype(np.float64) for values in known]
        ends = np.array([np.percentile(values, CUT) if values.size else (0, 1) for values in known])
    low, high = ends[:, 0].reshape(-1, 1, 1), ends[:, 1].reshape(-1, 1, 1)
    high = np.where(high > low, high, low + 1)
    small = np.where(np.isfinite(_thin(planes)), _thin(planes), np.nan).astype(np.float64)
    return np.clip((small - low) / (high - low), 0, 1), float(low[0, 0, 0]), float(high[0, 0, 0])


def _draw_image(axes: Axes, reader: SplitReader, role: str, index: int) -> tuple[str, tuple[float, float] | None]:
    """Draw input or target; return its title, and the values at the ends of the colour bar."""
    array = reader.read(role, index)
    rgb = len(array) == 3
    array = array if rgb else array[:1]
    finite = array[np.isfinite(array)]
    ends = (
        f"{format_number(float(finite.min()))}..{format_number(float(finite.max()))}"
        if finite.size
        else "no finite value"
    )
    small, low, high = stretched(array)
    if rgb:
        axes.imshow(np.nan_to_num(small.transpose(1, 2, 0)), aspect="auto")
        return f"{role}: {ends}", None
    axes.imshow(small[0], cmap=_grey(), vmin=0, vmax=1, aspect="auto")
    return f"{shorten(reader.channel_names(role)[0])}: {ends}", (low, high)


def _draw_bar(axes: Axes, low: float, high: float) -> None:
    axes.imshow(np.linspace(1, 0, 128)[:, None], cmap=_grey(), aspect="auto", extent=(0, 1, low, high))
    axes.yaxis.tick_right()
    axes.set_yticks([low, high], [format_number(low), format_number(high)], fontsize=6)
    axes.tick_params(length=2, pad=1)
    lower, upper = axes.get_yticklabels()
    lower.set_verticalalignment("bottom")
    upper.set_verticalalignment("top")


def _grey() -> Colormap:
    """Grey, with pixels that are not finite in red."""
    return colormaps["gray"].with_extremes(bad="red")


def _draw_overlay(axes: Axes, reader: SplitReader, role: str, index: int) -> tuple[str, None]:
    """Draw outlines of the objects, or the classes in colour, over the input; return the title."""
    labels = reader.read(role, index)
    axes.imshow(stretched(reader.read("image", index)[:1])[0][0], cmap=_grey(), vmin=0, vmax=1, aspect="auto")
    values = np.unique(labels)
    if role == "instances":
        edge = _outlines(_thin(labels))
        text = f"instances: {np.count_nonzero(values)} objects"
        rgba = to_rgba_array(OUTLINES)[edge.astype(np.int64) % len(OUTLINES)]
        rgba[..., 3] = edge > 0
    else:
        text = f"mask: {len(values)} values, {values[0]}..{values[-1]}"
        rgba = _class_overlay(reader, _thin(labels))
    axes.imshow(rgba, aspect="auto", interpolation="nearest")
    return text, None


def _class_overlay(reader: SplitReader, labels: np.ndarray) -> np.ndarray:
    """(H, W) classes -> (H, W, 4): the background shows the input; what is no class is white."""
    colors, background = _class_colors(reader), reader.attributes.get("background")
    if not len(colors):  # no names: as many colours as values
        colors = class_colors(int(labels.max(initial=0)) + 1)
    ignored = (labels >= len(colors)) | (labels == reader.attributes.get("ignore_index"))
    rgba = np.full((*labels.shape, 4), 0.5)
    rgba[..., :3] = np.where(ignored[..., None], NOT_ANNOTATED, colors[np.where(ignored, 0, labels)])
    if background is not None:
        rgba[labels == reader.attributes["classes"]["mask"].index(background), 3] = 0
    return rgba


def _outlines(labels: np.ndarray) -> np.ndarray:
    """(H, W) object numbers -> the number on both sides of each object's border, 0 elsewhere."""
    padded = np.pad(labels, 1, mode="edge")
    around = np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
    return np.where((around != labels).any(axis=0), np.maximum(labels, around.max(axis=0)), 0)
