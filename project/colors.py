"""Colors of classes in figures, and the legend that names them."""

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

NOT_ANNOTATED = (1.0, 1.0, 1.0)
BACKGROUND = (0.1, 0.1, 0.1)
MOST = 60  # classes in a legend
ROW = 0.17  # inches, height of a line of a legend


def class_colors(n: int, background: int | None = None) -> np.ndarray:
    """Colors of n classes, (n, 3) from 0 to 1: up to 18 are distinct; class number `background` is nearly black."""
    # The strong colors of tab20 first, then the pale ones; without its grays.
    order = [k for k in (*range(0, 20, 2), *range(1, 20, 2)) if k not in (14, 15)]
    colors = matplotlib.colormaps["tab20"](order)[np.arange(n) % len(order), :3]
    return colors if background is None else np.insert(colors[: n - 1], background, BACKGROUND, axis=0)


class ClassLegend:
    """A legend with as many lines as the names of the classes need, for a figure of a width in inches.

    With `not_annotated` the masks have pixels without a class, which are white.
    """

    def __init__(self, names: list[str], colors: np.ndarray, width: float, not_annotated: bool = False) -> None:
        entries = list(zip(names, colors.tolist(), strict=True))[:MOST]
        if len(names) > MOST:
            entries.append((f"... and {len(names) - MOST} more", NOT_ANNOTATED))
        if not_annotated:
            entries.append(("not annotated", NOT_ANNOTATED))
        self.entries = [(name if len(name) <= 40 else f"{name[:38]}…", color) for name, color in entries]
        longest = max((len(name) for name, _ in self.entries), default=0)
        self.columns = max(1, min(len(self.entries), int((width - 0.4) / (0.55 + 0.065 * longest))))
        self.height = ROW * math.ceil(len(self.entries) / self.columns)  # inches

    def draw(self, figure: Figure, **location: Any) -> None:
        """Add it to a figure; `location` are options of `Figure.legend`."""
        handles = [Patch(facecolor=color, edgecolor="0.6", linewidth=0.5, label="class") for _, color in self.entries]
        legend = figure.legend(handles=handles, ncols=self.columns, fontsize=7, frameon=False, **location)
        for text, (name, _) in zip(legend.get_texts(), self.entries, strict=True):
            # As label, a name that begins with "_" would be left out, and dollar signs would be formulae.
            text.set_text(name)
            text.set_parse_math(False)
