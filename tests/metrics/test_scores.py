import pytest
import scipy.stats
import skimage.metrics
import sklearn.metrics
import torch

from project.metrics.image import MOMENTS, image_scores, pooled_scores

SCORES = ("mse", "mae", "r2", "pearson", "psnr", "ssim")


def pair(offset=0.0, scale=1.0, shape=(4, 2, 31, 27), seed=0, dtype=torch.float32):
    """Prediction and target that are alike, each image with a brightness of its own."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(*shape[:2], 1, 1, generator=generator, dtype=torch.float64)
    target = level + torch.rand(shape, generator=generator, dtype=torch.float64)
    prediction = 0.8 * target + 0.4 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return ((offset + scale * x).to(dtype) for x in (prediction, target))


def extremes(target):
    return target.amin((0, 2, 3)), target.amax((0, 2, 3))


def moments(rows):
    return {name: rows[name] for name in MOMENTS}


def pooled(*pairs):
    """Pooled scores of batches, whose images may differ in size between batches."""
    each = [moments(image_scores(p, t, torch.zeros(p.shape[1]), torch.ones(p.shape[1]))) for p, t in pairs]
    return pooled_scores({name: torch.cat([rows[name] for rows in each]) for name in MOMENTS})


REFERENCES = {
    "mse": lambda p, t, r: sklearn.metrics.mean_squared_error(t.ravel(), p.ravel()),
    "mae": lambda p, t, r: sklearn.metrics.mean_absolute_error(t.ravel(), p.ravel()),
    "r2": lambda p, t, r: sklearn.metrics.r2_score(t.ravel(), p.ravel()),
    "pearson": lambda p, t, r: scipy.stats.pearsonr(p.ravel(), t.ravel()).statistic,
    "psnr": lambda p, t, r: skimage.metrics.peak_signal_noise_ratio((t - r[0]) / r[1], (p - r[0]) / r[1], data_range=1),
    "ssim": lambda p, t, r: skimage.metrics.structural_similarity(
        (t - r[0]) / r[1],
        (p - r[0]) / r[1],
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
    ),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (60_000, 1500), (-0.5, 1e-3)])
def test_each_image_scores_as_in_the_reference(name, offset, scale):
    prediction, target = pair(offset, scale)
    low, high = extremes(target)
    found = image_scores(prediction, target, low, high)[name]
    assert found.dtype == torch.float64
    for b in range(4):
        for c in range(2):
            p, t = (x[b, c].double().numpy() for x in (prediction, target))
            expected = REFERENCES[name](p, t, (low[c].item(), (high[c] - low[c]).item()))
            assert found[b, c].item() == pytest.approx(expected, rel=1e-7)


def test_scores_are_not_rounded_by_mixed_precision():
    """Scores are computed inside the validation step, where convolutions and products would run in bfloat16."""
    prediction, target = pair(shape=(2, 1, 40, 40))
    expected = image_scores(prediction, target, torch.zeros(1), torch.ones(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = image_scores(prediction, target, torch.zeros(1), torch.ones(1))
    for name, values in expected.items():
        assert torch.equal(found[name], values), name


def flat(level):
    """A constant image; and what comes back from one in normalized units, which differs by the last bit of float32."""
    constant = torch.full((2, 1, 33, 37), level)
    bit = torch.nextafter(constant, torch.tensor(torch.inf)) - constant
    noise = torch.randint(0, 2, constant.shape, generator=torch.Generator().manual_seed(0))
    return constant, constant + (bit if level else 0) * noise


@pytest.mark.parametrize("level", [0.0, 0.1, 60_000.3])
def test_constant_images_have_no_correlation_and_as_target_no_r2(level):
    _, other = pair(level, 1, (2, 1, 33, 37))
    for constant in flat(level):
        for prediction, target in ((constant, other), (other, constant)):
            rows = image_scores(prediction, target, torch.tensor([0.0]), torch.tensor([1.0]))
            assert rows["pearson"].isnan().all()
            assert rows["r2"].isnan().all() == (target is constant)
            assert rows["mse"].isfinite().all()
            of_all = pooled((prediction, target))
            assert of_all["pearson_pooled"].isnan().all()
            assert of_all["r2_pooled"].isnan().all() == (target is constant)


@pytest.mark.parametrize(("shape", "defined"), [((11, 11), True), ((10, 40), False), ((40, 10), False)])
def test_ssim_needs_room_for_its_window(shape, defined):
    prediction, target = pair(shape=(2, 1, *shape))
    rows = image_scores(prediction, target, *extremes(target))
    assert rows["ssim"].shape == (2, 1)
    assert rows["ssim"].isfinite().all().item() == defined
    assert rows["psnr"].isfinite().all()


def test_a_training_target_without_range_leaves_only_its_own_channel_undefined():
    prediction, target = pair()
    low, high = extremes(target)
    high[1] = low[1]
    rows = image_scores(prediction, target, low, high)
    expected = image_scores(prediction, target, *extremes(target))
    for name in ("psnr", "ssim"):
        assert rows[name][:, 1].isnan().all()
        torch.testing.assert_close(rows[name][:, 0], expected[name][:, 0])
