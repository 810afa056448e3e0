"""Figures of an inspection: histograms, brightness of splits and groups, contact sheets, thumbnails."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from skimage.segmentation import find_boundaries

from project.colors import NOT_ANNOTATED, ClassLegend, class_colors
from project.data.crops import spread
from project.data.inspection.measure import Channel, Measures
from project.data.split_metadata import ARRAYS
from project.data.statistics import Histogram
from project.data.store import SplitReader
from project.formatting import format_number, shorten
from project.pages.render import thumbnail_uri

COLORS = {"train": "#0072b2", "val": "#e69f00", "test": "#009e73"}  # Okabe and Ito: safe for color-blind readers
OUTLINES = ("#ff2d2d", "#00b4ff", "#ff9500", "#2ecc40", "#ff2dff", "#e0c000")  # visible on black and on white
PIXELS = ("image", "target")  # the arrays that hold intensities
MOST_SAMPLES = 12  # on a contact sheet
MOST_CHANNELS = 24  # with plots: a stack can have hundreds
MOST_POINTS = 200  # images of one split and group that are plotted one by one
MOST_GROUPS = 12
BINS = 200
CUT = (0.5, 99.5)  # percentiles shown as black and white
PANEL, PER_ROW = 1.75, 8  # inches and number of the images on a contact sheet
PANEL_PIXELS = 175  # along one side: outlines one pixel wide would vanish in a larger image


def draw_histograms(histograms: dict[Channel, dict[str, Histogram]], report: dict[str, Any]) -> Figure:
    """Share of the pixels by value with a logarithmic axis, a line per split."""
    entries = report["channels"][:MOST_CHANNELS]
    figure, plots = _rows_of_axes(len(entries), 9, 2.2)
    for axes, entry in zip(plots, entries, strict=True):
        _format(axes, f"{entry['name']}: {entry['text']}", "share of pixels per bin")
        if entry["min"] is None:
            continue
        by_split = histograms[entry["role"], entry["channel"]]
        edges = bin_edges(entry, list(by_split.values()))
        for split, histogram in by_split.items():
            values, counts = histogram.values()
            share = np.histogram(values, edges, weights=counts / max(histogram.n, 1))[0]
            axes.stairs(share, edges, color=COLORS[split], linewidth=1.3, label=split)
        axes.set_yscale("log")
        if train := entry["splits"].get("train", {}).get("percentiles"):
            label = "0.1 to 99.9 % of train"
            axes.axvspan(train["0.1"], train["99.9"], color=COLORS["train"], alpha=0.07, label=label)
        axes.legend(fontsize=8, frameon=False)
    return figure


def bin_edges(entry: dict[str, Any], histograms: list[Histogram]) -> np.ndarray:
    """Bin edges over the whole range; for integers each bin holds equally many of the values that occur."""
    low, high = entry["min"], entry["max"]
    if high == low:
        return np.array([low - 0.5, low + 0.5])
    if entry["dtype_max"] is None:
        return np.linspace(low, high, BINS + 1)
    # A bin that is narrower than the distance between values, or no multiple of it, would show a comb.
    used = np.unique(np.concatenate([histogram.values()[0] for histogram in histograms]))
    step = int(np.gcd.reduce(np.diff(used)))
    typical = step * int(np.ceil((high - low) / (len(used) - 1) / step))
    width = typical * int(np.ceil((high - low + 1) / (BINS * typical)))
    return np.arange(low, high + width + 1, width) - 0.5


def draw_brightness(measures: Measures, report: dict[str, Any]) -> Figure:
    """Mean of every image by group, or by split, in the color of its split; lines are medians.

    Of many groups those that differ are shown first, the most different one before the others, then others, evenly
    spaced; the title says how many there are.
    """
    entries = report["channels"][:MOST_CHANNELS]
    parts = [part for by_name in report["drift"]["groups"].values() for part in by_name.items()]
    parts.sort(key=lambda part: -abs(part[1]["mean"] - part[1]["reference"]) / (abs(part[1]["reference"]) or 1))
    shifted = list(dict.fromkeys(name for name, brightness in parts if brightness["difference"]))
    others = sorted({name for name, _ in parts} - {*shifted})
    groups = [*shifted, *(others[i] for i in spread(len(others), max(MOST_GROUPS - len(shifted), 0)))][:MOST_GROUPS]
    n = len(shifted) + len(others)
    more = f"; {len(groups)} of {n} groups, those that differ most first" if n > len(groups) else ""
    columns, part = (groups, measures.exposure_groups) if groups else (list(report["splits"]), measures.splits)
    figure, plots = _rows_of_axes(len(entries), min(max(7.0, 2.5 + 0.75 * len(columns)), 11.0), 2.6)
    for axes, entry in zip(plots, entries, strict=True):
        _format(axes, f"{entry['name']}: mean of each image{more}")
        means = measures.values[entry["role"], entry["channel"]]["mean"]
        for x, name in enumerate(columns):
            chosen = (part == name) & np.isfinite(means)
            _draw_column(axes, x, means[chosen], measures.splits[chosen])
        names = [shorten(name) or "(no folder)" for name in columns]
        axes.set_xticks(range(len(columns)), names, parse_math=False, rotation=25 if len(names) > 3 else 0)
    for split in report["splits"]:
        plots[0].scatter([], [], s=14, color=COLORS[split], label=split)
    plots[0].legend(fontsize=8, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    return figure


def _draw_column(axes: Axes, x: int, means: np.ndarray, splits: np.ndarray) -> None:
    if len(means):
        axes.hlines(np.median(means), x - 0.3, x + 0.3, color="0.25", linewidth=1.5)
    for split, color in COLORS.items():
        shown = np.sort(means[splits == split])
        shown = shown[spread(len(shown), MOST_POINTS)]
        offsets = (np.arange(len(shown)) * 0.618 % 1 - 0.5) * 0.4 * (len(shown) > 1)  # side by side
        axes.scatter(x + offsets, shown, s=14, color=color, alpha=0.75, linewidths=0)


def _rows_of_axes(n: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure with n plots below each other, each of this size in inches."""
    figure = Figure(figsize=(width, 0.5 + height * n), layout="constrained")
    return figure, figure.subplots(n, 1, squeeze=False)[:, 0]


def _format(axes: Axes, title: str, y: str = "") -> None:
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)  # names may hold dollar signs
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def draw_contact_sheet(reader: SplitReader, title: str) -> Figure:
    """Samples evenly spaced over a split: input, target, and objects or classes drawn over the input."""
    chosen, roles = spread(len(reader), MOST_SAMPLES), [role for role in ARRAYS if role in reader.dtypes]
    per_row = min(PER_ROW // len(roles), len(chosen))
    n_rows, width = -(-len(chosen) // per_row), PANEL * PER_ROW
    figure = Figure(figsize=(width, n_rows * (PANEL + 0.5) + 1), layout="constrained")
    heading = (
        f"{title}: {len(chosen)} of {len(reader)} samples, evenly spaced. Black and white are the {CUT[0]:g} and "
        f"{CUT[1]:g} percentiles of each image:\ncompare brightness by the smallest..largest value above it."
    )
    figure.suptitle(heading, fontsize=9, x=0.01, ha="left", parse_math=False)
    names = (reader.attributes.get("classes") or {}).get("mask")
    if names and "mask" in reader.dtypes:
        legend = ClassLegend(names, _class_colors(reader)[0], width, reader.attributes.get("ignore_index") is not None)
        legend.draw(figure, loc="outside lower left")
    panels = figure.subplots(n_rows, per_row * len(roles), squeeze=False).reshape(-1, len(roles))
    for axes in panels.ravel():
        axes.set_axis_off()
    for line, index in zip(panels, chosen, strict=False):
        for axes, role in zip(line, roles, strict=True):
            text = (_draw_pixels if role in PIXELS else _draw_overlay)(axes, reader, role, index)
            name = shorten(reader.ids[index]) if role == roles[0] else ""
            axes.set_title(f"{name}\n{text}", fontsize=7, loc="left", parse_math=False)
    return figure


def stretch(planes: np.ndarray, ends: np.ndarray | None = None) -> np.ndarray:
    """(C, H, W) -> the same as float64 from 0 to 1, with the percentiles `CUT` at 0 and 1.

    An 8-bit color image has one scale for its channels, which preserves the hues. Infinities become NaN; large images
    are subsampled. `ends` (C, 2) or (1, 2) replace the percentiles of these planes.
    """
    if ends is None:
        finite = [values[np.isfinite(values)] for values in ([planes] if planes.dtype == np.uint8 else planes)]
        ends = np.array([np.percentile(values.astype(float), CUT) if values.size else (0, 1) for values in finite])
    low, high = ends[:, 0].reshape(-1, 1, 1), ends[:, 1].reshape(-1, 1, 1)
    small = _subsample(planes)
    small = np.where(np.isfinite(small), small, np.nan).astype(np.float64)
    return np.clip((small - low) / (np.where(high > low, high, low + 1) - low), 0, 1)


def _subsample(array: np.ndarray) -> np.ndarray:
    """Every n-th pixel, so that one pixel of the array is at least one of the figure."""
    step = -(-max(array.shape[-2:]) // PANEL_PIXELS)
    return array[..., ::step, ::step]


def _draw_pixels(axes: Axes, reader: SplitReader, role: str, index: int) -> str:
    """Draw input or target, all three channels or the first one; return its title."""
    array = reader.read(role, index)
    name = role if len(array) == 3 else shorten(reader.channel_names(role)[0])
    array = array if len(array) == 3 else array[:1]
    axes.imshow(_rgb(stretch(array)))
    low, high = (reader.statistic(role, end)[index, : len(array)] for end in ("min", "max"))
    return f"{name}: {format_number(float(low.min()))}..{format_number(float(high.max()))}"


def _rgb(planes: np.ndarray) -> np.ndarray:
    """(1 or 3, H, W) from 0 to 1 -> (H, W, 3); pixels that are not finite are red."""
    pixels = np.nan_to_num(planes if len(planes) == 3 else np.repeat(planes, 3, axis=0)).transpose(1, 2, 0)
    pixels[np.isnan(planes).any(axis=0)] = 1, 0, 0
    return pixels


def _draw_overlay(axes: Axes, reader: SplitReader, role: str, index: int) -> str:
    """Draw outlines of the objects, or the classes in color, over the input; return the title."""
    labels = reader.read(role, index)
    axes.imshow(_rgb(stretch(reader.read("image", index)[:1])))
    values, small = np.unique(labels), _subsample(labels)
    if role == "instances":
        rgba = to_rgba_array(OUTLINES)[small.astype(np.int64) % len(OUTLINES)]
        rgba[..., 3] = find_boundaries(small, mode="inner")
        text = f"instances: {np.count_nonzero(values)} objects"
    else:
        rgba = color_classes(reader, small)
        text = f"mask: {len(values)} values, {values[0]}..{values[-1]}"
    axes.imshow(rgba, interpolation="nearest")
    return text


def color_classes(reader: SplitReader, labels: np.ndarray) -> np.ndarray:
    """(H, W) classes -> (H, W, 4): the background shows the input; pixels without a class are white."""
    colors, background = _class_colors(reader)
    ignored = (labels >= len(colors)) | (labels == reader.attributes.get("ignore_index"))
    rgba = np.full((*labels.shape, 4), 0.5)
    rgba[..., :3] = np.where(ignored[..., None], NOT_ANNOTATED, colors[np.where(ignored, 0, labels)])
    if background is not None:
        rgba[labels == background, 3] = 0
    return rgba


def _class_colors(reader: SplitReader) -> tuple[np.ndarray, int | None]:
    """Colors (K, 3) of the classes of the mask, and the number of the background."""
    names, background = (reader.attributes.get("classes") or {}).get("mask") or (), reader.attributes.get("background")
    number = None if background is None else names.index(background)
    return class_colors(len(names) or 256, number), number


def thumbnails(reader: SplitReader, id_: str, role: str = "image", channel: str | None = None) -> list[str]:
    """Data URIs of one sample: scaled by itself and, where the file has statistics, as the training images are.

    A `role` other than "image" and "target" shows the input. Color images are shown with all three channels.
    """
    role = role if role in PIXELS else "image"
    array, names = reader.read(role, reader.ids.index(id_)), reader.channel_names(role)
    first = names.index(channel) if channel in names else 0
    shown = slice(None) if len(array) == 3 else slice(first, first + 1)
    images = [stretch(array[shown])]
    statistics = (reader.attributes.get("statistics") or {}).get(role) or []
    cuts = [summary.get("percentiles") for summary in statistics[shown]]
    if cuts and all(cuts):
        images.append(stretch(array[shown], np.array([[c[f"{p:g}"] for p in CUT] for c in cuts])))
    return [thumbnail_uri((_rgb(image) * 255).round().astype(np.uint8)) for image in images]
