"""How an inspection is shown: tables on the terminal, histograms and contact sheets as PNG."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, to_rgba_array
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from project.data.inspection_findings import Key, number, percent
from project.data.statistics import Histogram
from project.data.store import ARRAYS, SplitReader

COLOURS = {"train": "#0072b2", "val": "#e69f00", "test": "#009e73"}  # Okabe and Ito: told apart by the colour-blind
OUTLINES = ("#ff2d2d", "#00b4ff", "#ff9500", "#2ecc40", "#ff2dff", "#e0c000")  # seen on black and on white
PIXELS = ("image", "target")  # the arrays that hold intensities
SHOWN = 12  # samples on a contact sheet
BINS = 200
PLOTS = 24  # histograms at most: a stack can have hundreds of channels
CUT = (0.5, 99.5)  # percentiles shown as black and white
# Inches: a panel, the space between panels, colour bar with numbers, title, and the whole sheet.
PANEL, NARROWEST, WIDEST, GAP, BAR, TITLE = 2.4, 1.0, 4.8, 0.15, 0.6, 0.42
SHEET, HEADING, HEADING_WIDTH = 18.0, 0.9, 8.0
DPI = 110
MOST_PIXELS = int(PANEL * DPI)  # of a panel along one side: outlines one pixel wide would vanish in a larger one
GROUPS_SHOWN = 12


def channel_names(reader: SplitReader, role: str) -> list[str]:
    """One name per channel; "rgb[0]", "rgb[1]" ... where one pattern brought several."""
    names = list(reader.attributes.get("channels", {}).get(role, [role]))
    count = reader.shapes[role][0][0]
    if len(names) == count:
        return names
    return [f"{names[0] if len(names) == 1 else role}[{i}]" for i in range(count)]


def draw(
    readers: dict[str, SplitReader],
    histograms: dict[Key, dict[str, Histogram]],
    report: dict[str, Any],
    folder: Path,
) -> list[str]:
    """Draw all pictures into `folder`.

    Returns:
        Their file names.
    """
    figures = {"histograms.png": draw_histograms(readers, histograms, report)}
    for split, reader in readers.items():
        figures[f"contact_{split}.png"] = draw_contact_sheet(reader, f"{report['dataset']}, {split}")
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=DPI)
    return list(figures)


def draw_histograms(
    readers: dict[str, SplitReader], histograms: dict[Key, dict[str, Histogram]], report: dict[str, Any]
) -> Figure:
    """Share of the pixels by value, one plot per channel, one line per split, over the range that is used."""
    histograms = dict(list(histograms.items())[:PLOTS])
    figure = Figure(figsize=(9, 0.6 + 2.9 * len(histograms)), layout="constrained")
    plots = figure.subplots(len(histograms), 1, squeeze=False)[:, 0]
    for axes, (key, by_split), entry in zip(plots, histograms.items(), report["channels"], strict=False):
        axes.set_title(f"{'/'.join(key)}: {entry['text']}", fontsize=9, loc="left")
        axes.set_ylabel("share of pixels per bin", fontsize=8)
        axes.set_xlabel(f"value of {key[1]}", fontsize=8)
        axes.tick_params(labelsize=8)
        if entry["min"] is None:
            continue
        edges = _edges(entry)
        for split, histogram in by_split.items():
            counts = _binned(histogram, readers[split], key, edges)
            axes.stairs(counts / max(histogram.n, 1), edges, color=COLOURS[split], linewidth=1.3, label=split)
        axes.set_yscale("log")
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        cuts = entry["splits"].get("train", {}).get("percentiles")
        if cuts:
            axes.axvspan(cuts["0.1"], cuts["99.9"], color=COLOURS["train"], alpha=0.07, label="0.1 to 99.9 % of train")
        axes.legend(fontsize=8, frameon=False)
    left_out = len(report["channels"]) - len(histograms)
    more = f" (first {PLOTS} channels, {left_out} left out)" if left_out else ""
    figure.suptitle(f"{report['dataset']}: pixel values{more}", fontsize=11)
    return figure


def _edges(entry: dict[str, Any]) -> np.ndarray:
    """Bin edges over the used range; for integers each bin holds equally many of the values that occur."""
    low, high = entry["min"], entry["max"]
    if high == low:
        return np.array([low - 0.5, low + 0.5])
    if entry["dtype_max"] is None:
        return np.linspace(low, high, BINS + 1)
    # A bin narrower than the usual distance between values, or no multiple of it, would show a comb.
    distance = int(np.ceil((high - low) / (entry["n_distinct"] - 1) / entry["step"])) * entry["step"]
    width = distance * int(np.ceil((high - low + 1) / (BINS * distance)))
    return np.arange(low, high + width + 1, width) - 0.5


def _binned(histogram: Histogram, reader: SplitReader, key: Key, edges: np.ndarray) -> np.ndarray:
    if histogram.exact:
        return np.histogram(np.arange(len(histogram.counts)), edges, weights=histogram.counts)[0]
    # The histogram of floats has bins of 0.4 % of the value: too coarse for a narrow range far from zero.
    channel, total = channel_names(reader, key[0]).index(key[1]), np.zeros(len(edges) - 1)
    for index in range(len(reader)):
        plane = reader.read(key[0], index)[channel].astype(np.float64)
        total += np.histogram(plane[np.isfinite(plane)], edges)[0]
    return total


def draw_contact_sheet(reader: SplitReader, title: str) -> Figure:
    """Samples evenly spaced over a split: input, target, and objects or classes drawn over the input."""
    chosen = np.unique(np.linspace(0, len(reader) - 1, min(SHOWN, len(reader))).round().astype(int)).tolist()
    roles = [role for role in ARRAYS if role in reader.dtypes]
    width = float(np.clip(max(PANEL * s[-1] / s[-2] for s in reader.shapes["image"]), NARROWEST, WIDEST))
    # A colour bar stands beside input and target only.
    offsets = np.cumsum([0.0, *(width + (BAR if role in PIXELS else GAP) for role in roles)]).tolist()
    cell, row = offsets.pop() + GAP, PANEL + TITLE + GAP
    per_row = int(np.clip(SHEET // cell, 1, len(chosen)))
    wide, high = max(per_row * cell + GAP, HEADING_WIDTH), HEADING + -(-len(chosen) // per_row) * row
    figure = Figure(figsize=(wide, high))
    figure.text(GAP / wide, 1 - GAP / high, _heading(reader, title, len(chosen)), fontsize=9, va="top")
    for position, index in enumerate(chosen):
        top = high - HEADING - TITLE - position // per_row * row
        for role, offset in zip(roles, offsets, strict=True):
            # The panel has exactly the shape of the image, so that title and bar stand close to it.
            h, w = reader.shapes[role][index][-2:]
            panel_w, panel_h = w * min(width / w, PANEL / h), h * min(width / w, PANEL / h)
            left = GAP + position % per_row * cell + offset
            axes = _axes(figure, left, top, panel_w, panel_h)
            name = _short(reader.ids[index]) if role == roles[0] else ""
            draw_panel = _draw_image if role in PIXELS else _draw_overlay
            what, ends = draw_panel(axes, reader, role, index)
            axes.set_title(f"{name}\n{what}", fontsize=7, loc="left", pad=3)
            if ends:
                _draw_bar(_axes(figure, left + panel_w + 0.05, top, 0.08, panel_h), *ends)
    return figure


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


def _short(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:12]}...{text[-15:]}"


def _shown_channels(reader: SplitReader, role: str) -> str:
    names = channel_names(reader, role)
    if len(names) == 3:
        return f"{', '.join(names)} as red, green, blue"
    return names[0] if len(names) == 1 else f"{names[0]}, the first of {len(names)} channels"


def _thin(array: np.ndarray) -> np.ndarray:
    """Every n-th pixel, so that one pixel of the array is at least one of the picture."""
    step = -(-max(array.shape[-2:]) // MOST_PIXELS)
    return array[..., ::step, ::step]


def _stretched(planes: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(C, H, W) -> the same as float64 from 0 to 1, with `CUT` at 0 and 1, and these two values of the first channel.

    A photograph (8-bit colour) has one scale for its three channels, which keeps the hues.
    """
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
    ends = f"{number(float(finite.min()))}..{number(float(finite.max()))}" if finite.size else "no finite value"
    small, low, high = _stretched(array)
    if rgb:
        axes.imshow(np.nan_to_num(small.transpose(1, 2, 0)), aspect="auto")
        return f"{role}: {ends}", None
    axes.imshow(small[0], cmap=_grey(), vmin=0, vmax=1, aspect="auto")
    return f"{_short(channel_names(reader, role)[0])}: {ends}", (low, high)


def _draw_bar(axes: Axes, low: float, high: float) -> None:
    axes.imshow(np.linspace(1, 0, 128)[:, None], cmap=_grey(), aspect="auto", extent=(0, 1, low, high))
    axes.yaxis.tick_right()
    axes.set_yticks([low, high], [number(low), number(high)], fontsize=6)
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
    axes.imshow(_stretched(reader.read("image", index)[:1])[0][0], cmap=_grey(), vmin=0, vmax=1, aspect="auto")
    values = np.unique(labels)
    if role == "instances":
        edge = _outlines(_thin(labels))
        colours, alpha = edge, (edge > 0) * 1.0
        text = f"instances: {np.count_nonzero(values)} objects"
    else:
        colours, alpha = _thin(labels), (_thin(labels) > 0) * 0.5
        text = f"mask: {', '.join(map(str, values[:6]))}{' ...' if len(values) > 6 else ''}"
    rgba = to_rgba_array(OUTLINES)[colours.astype(np.int64) % len(OUTLINES)]
    rgba[..., 3] = alpha
    axes.imshow(rgba, aspect="auto", interpolation="nearest")
    return text, None


def _outlines(labels: np.ndarray) -> np.ndarray:
    """(H, W) object numbers -> the number on both sides of each object's border, 0 elsewhere."""
    padded = np.pad(labels, 1, mode="edge")
    around = np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
    return np.where((around != labels).any(axis=0), np.maximum(labels, around.max(axis=0)), 0)


def show(report: dict[str, Any], folder: Path, console: Console) -> None:
    """Print the report; what should be acted on comes last, before where the pictures lie."""
    _print_splits(report, console)
    _print_values(report, console)
    _print_groups(report, console)
    for kind, by_split in report["classes"].items():
        rows = [
            [c, *(f"{by_split[s][c]['count']} ({percent(by_split[s][c]['share'])})" for s in by_split)]
            for c in next(iter(by_split.values()))
        ]
        _table(console, f"Classes ({kind}; {'images' if kind == 'label' else 'pixels'})", ["class", *by_split], rows)
    if report["objects"]:
        rows = [
            [s, number(o["mean"]), str(o["min"]), str(o["max"]), str(o["n_without"])]
            for s, o in report["objects"].items()
        ]
        _table(console, "Objects per image", ["split", "mean", "fewest", "most", "images without"], rows)
    for heading, style in (("notes", "cyan"), ("warnings", "yellow")):
        if report[heading]:
            console.print(Text(f"\n{heading.capitalize()}", style=f"bold {style}"))
        for i, sentence in enumerate(report[heading], 1):
            console.print(Text(f" {i}. {sentence}"))
    if not report["warnings"]:
        console.print(Text("\nNo warnings.", style="green"))
    console.print(Text(f"\nPictures, images.csv and report.json are in {folder}/: {', '.join(report['pictures'])}"))


def _print_splits(report: dict[str, Any], console: Console) -> None:
    roles = list(next(iter(report["splits"].values()))["roles"])
    rows = [
        [name, str(s["n_samples"]), str(s["n_groups"]), *(_size(s["roles"][role]) for role in roles)]
        for name, s in report["splits"].items()
    ]
    _table(console, f"{report['dataset']}: samples", ["split", "samples", "groups", *roles], rows)


def _size(role: dict[str, Any]) -> str:
    pairs = zip(role["smallest"], role["largest"], strict=True)
    return f"{' x '.join(str(a) if a == b else f'{a}-{b}' for a, b in pairs)} {role['dtype']}"


def _print_values(report: dict[str, Any], console: Console) -> None:
    shown = ("0.1", "1", "50", "99", "99.9")
    for entry in report["channels"]:
        rows = []
        for split, s in entry["splits"].items():
            cuts = s.get("percentiles", {})
            numbers = [s.get("min"), *(cuts.get(p) for p in shown), s.get("max"), s.get("mean"), s.get("std")]
            rows.append([split, *map(number, numbers), percent(entry["saturated"][split])])
        columns = ["split", "min", "0.1 %", "1 %", "median", "99 %", "99.9 %", "max", "mean", "std", "satur."]
        _table(console, f"{entry['role']}/{entry['channel']}: {entry['text']}", columns, rows)


def _print_groups(report: dict[str, Any], console: Console) -> None:
    groups = report["groups"]
    if not groups:
        return
    channels = list(next(iter(groups.values()))["channels"])
    strange = [name for name, g in groups.items() if any(c["unlike"] for c in g["channels"].values())]
    order = [*strange, *(name for name in groups if name not in strange)]
    rows = []
    for name in order[:GROUPS_SHOWN]:
        g = groups[name]
        cells = (g["channels"].get(c, {"mean": None, "unlike": None}) for c in channels)
        means = [number(c["mean"]) + (f", {c['unlike']}" if c["unlike"] else "") for c in cells]
        rows.append([name, str(g["n_samples"]), ", ".join(g["splits"]), *means])
    more = f" ({GROUPS_SHOWN} of {len(groups)}; all in report.json)" if len(groups) > GROUPS_SHOWN else ""
    _table(console, f"Mean of a typical image per group{more}", ["group", "samples", "splits", *channels], rows)


def _table(console: Console, title: str, columns: list[str], rows: Iterable[list[str]]) -> None:
    # Text, since ids and channel names may hold [brackets], which are markup to rich.
    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(Text(f"\n{title}", style="bold"))
    console.print(table)
