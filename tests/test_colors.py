"""Colours and legends of classes."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from project.colors import BACKGROUND, ClassLegend, class_colors


@pytest.mark.parametrize(("n", "background"), [(1, None), (11, None), (18, None), (2, 0), (12, 11), (19, 3)])
def test_classes_have_colours_of_their_own(n, background):
    colors = class_colors(n, background)
    assert colors.shape == (n, 3)
    assert len(np.unique(colors, axis=0)) == n
    if background is not None:
        assert tuple(colors[background]) == BACKGROUND
    assert class_colors(300, background).shape == (300, 3)


@pytest.mark.parametrize("width", [3.0, 8.0, 14.0])
@pytest.mark.parametrize(
    "names", [["cell"], ["background", "cell"], [f"class {i} " + "x" * (i % 30) for i in range(70)]]
)
def test_a_legend_names_all_classes_inside_the_figure(names, width):
    legend = ClassLegend(names, class_colors(len(names)), width, not_annotated=True)
    height = legend.height + 0.3
    figure = Figure(figsize=(width, height))
    legend.draw(figure, loc="lower center")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (box,) = figure.legends
    place = box.get_window_extent(canvas.get_renderer())
    assert place.x0 >= 0
    assert place.x1 <= width * figure.dpi
    assert place.y1 <= height * figure.dpi
    shown = [text.get_text() for text in box.get_texts()]
    assert shown[-1] == "not annotated"
    assert shown[: min(len(names), 60)] == names[:60]
    assert ("... and 10 more" in shown) == (len(names) == 70)


def test_names_are_shown_as_they_are():
    names = ["_hidden", "$x_1$", "y" * 50]
    figure = Figure(figsize=(8, 1))
    ClassLegend(names, class_colors(3), 8).draw(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["_hidden", "$x_1$", "y" * 38 + "…"]
    FigureCanvasAgg(figure).draw()
