"""Figures of an inspection: histograms, brightness of splits and groups, contact sheets, thumbnails."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from skimage.segmentation import find_boundaries

from project.colors import NOT_ANNOTATED, ClassLegend, class_colors
from project.data.inspection.measure import Channel, ImageMeasures
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
PANEL, TITLE, WIDTH = 1.75, 0.5, 14.0  # inches: an image, the text above it, a contact sheet
PANEL_PIXELS = 175  # along one side: outlines one pixel wide would vanish in a larger image


def shown_groups(report: dict[str, Any]) -> list[str]:
    """The groups in tables and figures: those that differ first, then others, evenly spaced over all splits."""
    groups = report["groups"]
    shifted = [name for name, g in groups.items() if any(c["difference"] for c in g["channels"].values())]
    others = [name for name in groups if name not in set(shifted)]
    n = min(max(MOST_GROUPS - len(shifted), 0), len(others))
    return [*shifted, *(others[i] for i in evenly_spaced(len(others), n))][:MOST_GROUPS]


def evenly_spaced(total: int, most: int) -> list[int]:
    """At most so many indices below `total`, the first and the last among them."""
    chosen = np.linspace(0, total - 1, min(most, total)).round().astype(int)
    return list(np.unique(chosen).tolist())


# Pixel values ---------------------------------------------------------------------------------------------------------


def draw_histograms(
    readers: dict[str, SplitReader], histograms: dict[Channel, dict[str, Histogram]], report: dict[str, Any]
) -> Figure:
    """Share of the pixels by value, a line per split: the bulk, and the whole range with a logarithmic axis."""
    channels = list(zip(histograms.items(), report["channels"], strict=True))[:MOST_CHANNELS]
    figure = Figure(figsize=(11, 0.6 + 2.7 * len(channels)), layout="constrained")
    for (bulk, whole), ((channel, by_split), entry) in zip(
        figure.subplots(len(channels), 2, squeeze=False), channels, strict=True
    ):
        for axes in (bulk, whole):
            _format(axes, x=f"value of {channel[1]}", y="share of pixels per bin")
        _title(bulk, f"{entry['name']}: {entry['text']}")
        _title(whole, "left: 98 % of the pixels; right: all, logarithmic", loc="right", color="0.4")
        if entry["min"] is None:
            continue
        cuts = [s["percentiles"] for s in entry["splits"].values() if "percentiles" in s]
        ranges = (min(c["1"] for c in cuts), max(c["99"] for c in cuts)), (entry["min"], entry["max"])
        edges = [bin_edges(entry, *ends) for ends in ranges]
        for split, histogram in by_split.items():
            counts = count_values(histogram, readers[split], channel, edges)
            for axes, ends, count in zip((bulk, whole), edges, counts, strict=True):
                axes.stairs(count / max(histogram.n, 1), ends, color=COLORS[split], linewidth=1.3, label=split)
        whole.set_yscale("log")
        if train := entry["splits"].get("train", {}).get("percentiles"):
            label = "0.1 to 99.9 % of train"
            whole.axvspan(train["0.1"], train["99.9"], color=COLORS["train"], alpha=0.07, label=label)
        whole.legend(fontsize=8, frameon=False)
    return figure


def bin_edges(entry: dict[str, Any], low: float, high: float) -> np.ndarray:
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


def count_values(
    histogram: Histogram, reader: SplitReader, channel: Channel, edges: list[np.ndarray]
) -> list[np.ndarray]:
    """Number of pixels in each bin, for each of several sets of bin edges."""
    if histogram.exact:
        return [np.histogram(np.arange(len(histogram.counts)), e, weights=histogram.counts)[0] for e in edges]
    # The histogram of floats has bins of 0.4 % of the value: too coarse for a narrow range far from zero.
    index, totals = reader.channel_names(channel[0]).index(channel[1]), [np.zeros(len(e) - 1) for e in edges]
    for sample in range(len(reader)):
        plane = reader.read(channel[0], sample)[index].astype(np.float64)
        for total, ends in zip(totals, edges, strict=True):
            total += np.histogram(plane[np.isfinite(plane)], ends)[0]
    return totals


def draw_brightness(images: list[ImageMeasures], report: dict[str, Any]) -> Figure:
    """Mean of every image by group, or by split, in the color of its split; boxes are quartiles, lines medians."""
    entries, columns = report["channels"][:MOST_CHANNELS], shown_groups(report) or list(report["splits"])
    attribute = "exposure_group" if report["groups"] else "split"
    width = min(max(7.0, 2.5 + 0.75 * len(columns)), 11.0)
    figure = Figure(figsize=(width, 0.5 + 2.6 * len(entries)), layout="constrained")
    plots = figure.subplots(len(entries), 1, squeeze=False)[:, 0]
    names = [shorten(name) or "(no folder)" for name in columns]
    crowded = sum(map(len, names)) > 90
    for axes, entry in zip(plots, entries, strict=True):
        for x, name in enumerate(columns):
            members = [image for image in images if getattr(image, attribute) == name]
            _draw_column(axes, x, members, (entry["role"], entry["channel"]))
        _format(axes)
        _title(axes, f"{entry['name']}: mean of each image")
        alignment = {"rotation": 25, "ha": "right"} if crowded else {}
        axes.set_xticks(range(len(columns)), names, parse_math=False, **alignment)
        axes.set_xlim(-0.6, len(columns) - 0.4)
    for split in report["splits"]:
        plots[0].scatter([], [], s=14, color=COLORS[split], label=split)
    plots[0].legend(fontsize=8, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    return figure


def _draw_column(axes: Axes, x: int, images: list[ImageMeasures], channel: Channel) -> None:
    known = [(image.split, mean) for image in images if (mean := image.values[channel]["mean"]) is not None]
    if not known:
        return
    low, median, high = np.percentile([mean for _, mean in known], (25, 50, 75))
    axes.bar(x, high - low, 0.6, low, color="0.92", edgecolor="0.75", linewidth=0.8, zorder=1)
    axes.hlines(median, x - 0.3, x + 0.3, color="0.25", linewidth=1.5, zorder=3)
    for split, color in COLORS.items():
        means = np.sort([mean for of, mean in known if of == split])
        means = means[evenly_spaced(len(means), MOST_POINTS)]
        offsets = (np.arange(len(means)) * 0.618 % 1 - 0.5) * 0.4 * (len(means) > 1)  # side by side
        axes.scatter(
            x + offsets, means, s=9 if len(means) > 20 else 22, color=color, alpha=0.75, linewidths=0, zorder=2
        )


def _format(axes: Axes, x: str = "", y: str = "") -> None:
    axes.set_xlabel(x, fontsize=8, parse_math=False)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="both" if x else "y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _title(axes: Axes, text: str, size: int = 9, loc: Any = "left", color: str = "black") -> None:
    axes.set_title(text, fontsize=size, loc=loc, color=color, parse_math=False)  # names may hold dollar signs


# Samples --------------------------------------------------------------------------------------------------------------


def draw_contact_sheet(reader: SplitReader, title: str) -> Figure:
    """Samples evenly spaced over a split: input, target, and objects or classes drawn over the input."""
    chosen = evenly_spaced(len(reader), MOST_SAMPLES)
    roles = [role for role in ARRAYS if role in reader.dtypes]
    ratio = float(np.clip(max(w / h for *_, h, w in (reader.shapes["image"][i] for i in chosen)), 0.5, 2))
    per_row = int(np.clip(WIDTH // (PANEL * ratio * len(roles)), 1, len(chosen)))
    n_rows = -(-len(chosen) // per_row)
    per_row = -(-len(chosen) // n_rows)
    width, height = max(PANEL * ratio * len(roles) * per_row, 8.0), n_rows * (PANEL + TITLE)
    legend = _legend(reader, width)
    heading = 0.8 + (legend.height + 0.1 if legend else 0)
    figure = Figure(figsize=(width, height + heading))
    figure.set_layout_engine("constrained", rect=(0, 0, 1, height / (height + heading)))
    top = 1 - 0.05 / (height + heading)
    figure.text(0.01, top, _heading(reader, title, len(chosen)), fontsize=9, va="top", parse_math=False)
    if legend:
        corner = 0.01, 1 - 0.8 / (height + heading)
        legend.draw(figure, loc="upper left", bbox_to_anchor=corner, borderaxespad=0, borderpad=0)
    panels = figure.subplots(n_rows, per_row * len(roles), squeeze=False).reshape(-1, len(roles))
    for axes in panels.ravel():
        axes.set_axis_off()
    for line, index in zip(panels, chosen, strict=False):
        for axes, role in zip(line, roles, strict=True):
            text = (
                _draw_pixels(axes, reader, role, index) if role in PIXELS else _draw_overlay(axes, reader, role, index)
            )
            name = shorten(reader.ids[index]) if role == roles[0] else ""
            _title(axes, f"{name}\n{text}", size=7)
    return figure


def _heading(reader: SplitReader, title: str, n_shown: int) -> str:
    channels = []
    for role in (role for role in PIXELS if role in reader.dtypes):
        names = reader.channel_names(role)
        text = f"{names[0]}, the first of {len(names)} channels" if len(names) > 1 else names[0]
        channels.append(f"{role}: {', '.join(names)} as red, green, blue" if len(names) == 3 else f"{role}: {text}")
    return (
        f"{title}: {n_shown} of {len(reader)} samples, evenly spaced. {'; '.join(channels)}\n"
        f"Black and white are the {CUT[0]:g} and {CUT[1]:g} percentiles of each image and channel. Compare brightness\n"
        "by the smallest..largest value above each image, not by the looks."
    )


def stretch(planes: np.ndarray, ends: np.ndarray | None = None) -> np.ndarray:
    """(C, H, W) -> the same as float64 from 0 to 1, with the percentiles `CUT` at 0 and 1.

    An 8-bit color image has one scale for its channels, which preserves the hues.

    Args:
        planes: (C, H, W); NaN and infinities become NaN. Large ones are subsampled.
        ends: (C, 2) or (1, 2) values that become 0 and 1, instead of the percentiles of these planes.
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
    """Draw input or target; return its title."""
    array = reader.read(role, index)
    rgb = len(array) == 3
    array = array if rgb else array[:1]
    finite = array[np.isfinite(array)]
    axes.imshow(_rgb(stretch(array)))
    name = role if rgb else shorten(reader.channel_names(role)[0])
    if not finite.size:
        return f"{name}: no finite value"
    return f"{name}: {format_number(float(finite.min()))}..{format_number(float(finite.max()))}"


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
    colors, background = _class_colors(reader), reader.attributes.get("background")
    if not len(colors):  # no names: as many colors as values
        colors = class_colors(int(labels.max(initial=0)) + 1)
    ignored = (labels >= len(colors)) | (labels == reader.attributes.get("ignore_index"))
    rgba = np.full((*labels.shape, 4), 0.5)
    rgba[..., :3] = np.where(ignored[..., None], NOT_ANNOTATED, colors[np.where(ignored, 0, labels)])
    if background is not None:
        rgba[labels == reader.attributes["classes"]["mask"].index(background), 3] = 0
    return rgba


def _class_colors(reader: SplitReader) -> np.ndarray:
    names, background = (reader.attributes.get("classes") or {}).get("mask", []), reader.attributes.get("background")
    return class_colors(len(names), None if background is None else names.index(background))


def _legend(reader: SplitReader, width: float) -> ClassLegend | None:
    """Names and colors of the classes of the mask."""
    names = (reader.attributes.get("classes") or {}).get("mask")
    if not names or "mask" not in reader.dtypes:
        return None
    return ClassLegend(names, _class_colors(reader), width, reader.attributes.get("ignore_index") is not None)


def thumbnails(reader: SplitReader, id_: str, role: str = "image", channel: str | None = None) -> list[str]:
    """Data URIs of one sample: scaled by itself and, where the file has statistics, as the training images are.

    Args:
        reader: The split that holds it.
        id_: Of the sample.
        role: "image" or "target"; anything else shows the input.
        channel: Which; None for the first, or for all three of a color image.
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
