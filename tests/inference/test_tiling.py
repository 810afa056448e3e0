"""Tiles: what they cover, how they are blended, and that they change nothing where they need not."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from project.errors import UserError
from project.inference.tiling import spans, tiled, weights, whole_image_norms
from project.models.unet import UNet

TILE = 64
RANGE = 65535.0


def identity(x):
    return x


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, RANGE, shape).astype(np.float32))


@pytest.mark.parametrize("multiple", [1, 32])
@pytest.mark.parametrize("length", [1, TILE, TILE + 1, 211])
def test_tiles_of_an_identity_network_give_the_image(length, multiple):
    for shape in ((length, length), (length, 83), (1, length)):
        x = noise(1, 2, *shape)
        assert (tiled(identity, x, TILE, multiple=multiple) - x).abs().max() < 1e-6 * RANGE


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 6), st.integers(0, 5), st.sampled_from([1, 8, 32]))
def test_weights_of_each_pixel_sum_to_one(length, tile, overlap, multiple):
    tile, overlap = tile * multiple, min(overlap, tile - 1) * multiple
    places = spans(length, tile, overlap, multiple)
    total = np.zeros(length)
    for (start, stop), weight in zip(places, weights(places, overlap), strict=True):
        assert start % multiple == 0
        assert 0 < stop - start <= tile
        assert weight.min() >= 0
        total[start:stop] += weight.numpy()
    np.testing.assert_allclose(total, 1, atol=1e-6)
    shared = [a[1] - b[0] for a, b in pairwise(places)]
    # All but the last tile are whole; the last may end at the image before its padding.
    assert all(n >= overlap for n in shared[:-1])


def test_what_a_tiles_border_does_is_dropped_where_a_neighbour_has_the_pixel():
    def spoilt(x):
        y = x.clone()
        for edge in (y[..., :8, :], y[..., -8:, :], y[..., :8], y[..., -8:]):
            edge += 1000
        return y

    x = torch.zeros(1, 1, 160, 160)
    found = tiled(spoilt, x, 64)
    assert found[..., 8:-8, 8:-8].abs().max() == 0
    assert found[..., 0, :].min() >= 1000  # the image's own border is nobody else's


def test_a_network_that_halves_sees_tiles_on_the_grid_of_the_whole_image():
    torch.manual_seed(0)
    net = UNet(in_channels=1, out_channels=1, width=4, depth=2).eval()

    def run(part):
        height, width = part.shape[-2:]
        padded = torch.nn.functional.pad(part, (0, -width % 4, 0, -height % 4), mode="replicate")
        return net(padded)[..., :height, :width]

    x = noise(1, 1, 157, 230) / RANGE
    with torch.inference_mode():
        whole = run(x)
        # It sees less than three eighths of the overlap.
        on_grid, off_grid = (tiled(run, x, 128, multiple=multiple) for multiple in (4, 1))
    assert (on_grid - whole).abs().max() < 1e-5 * (whole.max() - whole.min())
    assert (off_grid - whole).abs().max() > 1e-3 * (whole.max() - whole.min())


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_instance_norms_of_tiles_are_those_of_the_whole_image(compiled):
    torch.manual_seed(0)
    net = UNet(in_channels=1, out_channels=1, width=4, depth=2, norm="instance").eval()
    if compiled:
        net.compile(backend="eager")

    def run(part):
        height, width = part.shape[-2:]
        padded = torch.nn.functional.pad(part, (0, -width % 4, 0, -height % 4), mode="replicate")
        return net(padded)[..., :height, :width]

    x = noise(2, 1, 157, 230) / RANGE * torch.linspace(0, 3, 230)  # brighter on the right
    with torch.inference_mode():
        whole, scattered = run(x), tiled(run, x, 128, 4)
        with whole_image_norms(net, run, x, 128, 4):
            found = tiled(run, x, 128, 4)
        assert (found - whole).abs().max() < 1e-4 * (whole.max() - whole.min())
        assert (scattered - whole).abs().max() > 0.1 * (whole.max() - whole.min())
        assert torch.equal(run(x), whole)  # afterwards the network is as it was
        calls = iter(range(9))

        def without_memory(part):
            return run(part) if next(calls) < 5 else torch.zeros(0)[1]

        with pytest.raises(IndexError), whole_image_norms(net, without_memory, x, 128, 4):
            pass
        assert torch.equal(run(x), whole)


def test_half_precision_outputs_are_blended_in_float32():
    x = noise(1, 1, 150, 150).half().float()
    found = tiled(lambda part: part.half(), x.clamp(max=60000), 64)
    assert found.dtype == torch.float32
    assert (found - x.clamp(max=60000)).abs().max() < 1e-6 * RANGE


def test_a_network_of_another_output_size_is_refused():
    with pytest.raises(UserError, match="cannot be tiled"):
        tiled(lambda part: part[..., ::2, ::2], torch.zeros(1, 1, 200, 200), 64)
