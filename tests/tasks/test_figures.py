import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from project.tasks.figures import draw_translation


def sample(name="a", channels=1, seed=0, offset=9000.0):
    rng = np.random.default_rng(seed)
    target = (offset + 3000 * rng.random((channels, 40, 30))).astype(np.uint16)
    return {
        "id": name,
        "image": rng.integers(9000, 12000, (2, 40, 30)).astype(np.uint16),
        "target": target,
        "prediction": target.astype(np.float32) * 1.5 + 10,
    }


def panels_of(figure):
    panels = [axis for axis in figure.axes if axis.get_title()]
    return panels, [axis for axis in figure.axes if axis not in panels]


def test_each_sample_and_channel_has_four_panels_with_color_bars():
    panels, bars = panels_of(draw_translation([sample(f"id{i}", 2, seed=i) for i in range(3)]))
    assert len(panels) == len(bars) == 4 * 3 * 2
    assert [axis.get_title() for axis in panels[:4]] == ["input", "target", "prediction", "prediction - target"]
    assert [axis.get_ylabel() for axis in panels[::4]] == ["id0", "id0", "id1", "id1", "id2", "id2"]


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e9])
def test_channels_are_named_and_colour_bars_lie_inside_the_figure(scale):
    one = sample(channels=2)
    one |= {name: (one[name] * scale).astype(np.float32) for name in ("target", "prediction")}
    figure = draw_translation([one], ["dna", "actin"])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    panels, bars = panels_of(figure)
    assert [axis.get_title() for axis in panels[1::4]] == ["target: dna", "target: actin"]
    for bar in bars:
        box = bar.get_tightbbox(canvas.get_renderer())
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1


def test_panels_show_the_arrays_and_share_the_scale_of_the_target():
    one = sample()
    panels, _ = panels_of(draw_translation([one]))
    shown = [axis.images[0] for axis in panels]
    np.testing.assert_array_equal(shown[0].get_array(), one["image"][0])
    np.testing.assert_array_equal(shown[1].get_array(), one["target"][0])
    np.testing.assert_array_equal(shown[2].get_array(), one["prediction"][0])
    np.testing.assert_allclose(shown[3].get_array(), one["prediction"][0] - one["target"][0].astype(np.float32))
    limits = tuple(np.percentile(one["target"][0], [0.5, 99.5]))
    assert shown[1].get_clim() == shown[2].get_clim() == pytest.approx(limits)
    low, high = shown[3].get_clim()
    assert -low == high > 0
