import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.special import expit, softmax
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from project.baselines.colors import ColorClassifier
from project.baselines.means import MajorityClass
from project.baselines.threshold import OtsuThreshold
from project.baselines.trees import BoostedTreesClassifier, LocalFilters, PixelTrees
from project.errors import UserError

IGNORED = 255


def masks(classes=2, channels=1, n_batches=3, size=(24, 20), seed=0, ignored=0.1):
    """Batches of images and classes of pixels that the surroundings half explain; some are not annotated."""
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(n_batches):
        x = gaussian_filter(rng.normal(size=(2, channels, *size)), (0, 0, 1, 1)) * 4
        score = gaussian_filter(x[:, 0], (0, 1, 1)) + rng.normal(0, 0.3, (2, *size))
        y = np.digitize(score, np.linspace(-0.7, 0.9, classes - 1))
        y[rng.random(y.shape) < ignored] = IGNORED
        batches.append((torch.from_numpy(x).float(), torch.from_numpy(y)))
    return batches


def labels(classes=3, multi_label=False, channels=2, n_batches=4, seed=0):
    """Batches of images and labels that brightness and contrast half explain."""
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(n_batches):
        brightness, contrast = rng.normal(size=(2, 10, channels, 1, 1))
        x = brightness + np.exp(contrast) * rng.normal(size=(10, channels, 9, 11))
        score = np.stack([brightness[:, 0, 0, 0], contrast[:, -1, 0, 0], np.full(10, 0.5), np.full(10, 0.4)], 1)[
            :, :classes
        ]
        score = score + rng.normal(0, 0.5, score.shape)
        y = torch.from_numpy((score > 0.3).astype(np.float32) if multi_label else score.argmax(1))
        batches.append((torch.from_numpy(x).float(), y))
    return batches


def fitted(net, batches):
    net.fit(iter(batches))
    return net


def together(batches):
    return torch.cat([x for x, _ in batches]).numpy(), torch.cat([y for _, y in batches]).numpy()


def small_trees(classes=2, **options):
    return BoostedTreesClassifier(classes, **{"n_trees": 10, "max_leaves": 7, "n_pixels": 1500, **options})


# Frequencies ----------------------------------------------------------------------------------------------------------


def test_the_majority_of_pixels_is_predicted_everywhere():
    batches = [*masks(3), *masks(3, n_batches=1, size=(50, 7))]
    pixels = np.concatenate([y.numpy().ravel() for _, y in batches])
    shares = np.bincount(pixels[pixels < 3]) / (pixels < 3).sum()
    net = fitted(MajorityClass(4), batches)
    logits = net(torch.zeros(2, 1, 5, 6))
    assert logits.shape == (2, 4, 5, 6)
    np.testing.assert_allclose(logits.softmax(1)[1, :, 4, 5], [*shares, 0], atol=2e-6)
    assert logits.isfinite().all()


def test_the_majority_of_images_has_no_place():
    batches = labels(3)
    batches[0][1][:2] = -1
    y = together(batches)[1]
    logits = fitted(MajorityClass(3), batches)(torch.zeros(5, 2, 4, 4))
    assert logits.shape == (5, 3)
    np.testing.assert_allclose(logits.softmax(1)[4], np.bincount(y[y >= 0]) / (y >= 0).sum(), atol=1e-6)


def test_the_majority_of_several_labels_is_predicted_for_each():
    batches = labels(4, multi_label=True)
    for _, y in batches:
        y[:, 3] = 1  # always
    y = together(batches)[1]
    logits = fitted(MajorityClass(4), batches)(torch.zeros(5, 2, 4, 4))
    expected = y.mean(0)
    assert logits.shape == (5, 4)
    np.testing.assert_allclose(logits.sigmoid()[2], expected, atol=2e-6)
    assert logits.isfinite().all()


# Colours --------------------------------------------------------------------------------------------------------------


def colours(x):
    x = x.astype(np.float64)
    return np.concatenate([x.mean((2, 3)), x.std((2, 3))], 1)


def reference(x, y):
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000)).fit(colours(x), y)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_mean_colour_is_scikit_learns_logistic_regression(classes):
    batches = labels(classes)
    expected = reference(*together(batches)).predict_proba(colours(together(labels(seed=9))[0]))
    logits = fitted(ColorClassifier(classes), batches)(torch.from_numpy(together(labels(seed=9))[0]))
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=1e-5)
    assert expected.std(0).min() > 0.01


def test_mean_colour_leaves_out_what_is_not_labelled_and_what_never_occurs():
    batches = [(x, torch.where(y == 1, 3, y)) for x, y in labels(3)]  # classes 0, 2, 3 of 5
    batches[1][1][4:7], batches[2][1][0] = -1, 255
    x, y = together(batches)
    expected = reference(x[(y >= 0) & (y < 5)], y[(y >= 0) & (y < 5)]).predict_proba(colours(x))
    logits = fitted(ColorClassifier(5), batches)(torch.from_numpy(x))
    np.testing.assert_allclose(logits.softmax(1)[:, [0, 2, 3]], expected, atol=1e-5)
    assert logits[:, [1, 4]].unique().tolist() == pytest.approx([math.log(1e-6)])


def test_mean_colour_fits_each_of_several_labels():
    batches = labels(4, multi_label=True)
    for _, y in batches:
        y[:, 2], y[:, 3] = 0, 1
    x, y = together(batches)
    logits = fitted(ColorClassifier(4), batches)(torch.from_numpy(x))
    first, second = (reference(x, y[:, k]).predict_proba(colours(x))[:, 1] for k in (0, 1))
    expected = np.stack([first, second, np.full(len(x), 1e-6), np.full(len(x), 1 - 1e-6)], 1)
    np.testing.assert_allclose(expit(logits.double().numpy()), expected, atol=1e-5)


# A threshold ----------------------------------------------------------------------------------------------------------


def discs(seed=0, n=4, size=(60, 48), sign=1.0, texture=0.0):
    """Images (n, 1, H, W) of one disc each that is brighter by `sign`, or coarser by `texture`, and their masks."""
    rng = np.random.default_rng(seed)
    images, objects = [], []
    for _ in range(n):
        y, x = np.ogrid[: size[0], : size[1]]
        disc = np.hypot(y - rng.uniform(20, 40), x - rng.uniform(20, 28)) < rng.uniform(10, 14)
        grain = rng.normal(0, 0.05, size) + texture * disc * rng.normal(size=size)
        image = rng.normal() + sign * disc + grain
        image[-6:, -6:] -= sign  # no object, but as far from the background
        images.append(image)
        objects.append(disc)
    return torch.from_numpy(np.stack(images)[:, None]).float(), torch.from_numpy(np.stack(objects)).long()


def dice(logits, y):
    found = logits.argmax(1)
    return (2 * ((found == 1) & (y == 1)).sum() / ((found == 1).sum() + (y == 1).sum())).item()


@pytest.mark.parametrize(
    ("options", "views", "side"),
    [
        ({"sign": 1.0}, {0, 1}, 0),
        ({"sign": -1.0}, {0, 1}, 1),
        ({"sign": 0.0, "texture": 1.0}, {2, 3}, 0),
    ],
)
def test_otsu_chooses_what_tells_the_objects(options, views, side):
    net = fitted(OtsuThreshold(), [discs(**options), discs(1, size=(50, 50), **options)])
    channel, view, below = net.choice.tolist()
    assert (channel, below) == (0, side)
    assert view in views
    x, y = discs(5, size=(64, 50), **options)
    logits = net(x)
    assert logits.shape == (4, 2, 64, 50)
    assert logits.dtype == torch.float32
    assert dice(logits, y) > 0.9


def test_otsu_sees_objects_brighter_and_darker_by_their_distance_from_the_median():
    def both(seed):
        x, y = discs(seed)
        x = x - x.flatten(2).median(2).values[:, :, None, None]
        return torch.cat([x, -x], 3), torch.cat([y, y], 2)

    net = fitted(OtsuThreshold(), [both(0)])
    assert net.choice.tolist() == [0, 4, 0]
    x, y = both(2)
    assert dice(net(x), y) > 0.9


def test_otsu_does_not_count_what_is_not_annotated(monkeypatch):
    """A tenth is bright, all of it an object; of the dark rest, two ninths are objects and nobody knows the others."""
    monkeypatch.setattr(OtsuThreshold, "VIEWS", ("intensity",))
    x, y = torch.zeros(1, 1, 10, 10), torch.full((1, 10, 10), IGNORED)
    x[..., 0] = 1
    y[..., :3] = 1
    assert fitted(OtsuThreshold(), [(x, y)]).choice.tolist() == [0, 0, 1]
    y[y == IGNORED] = 0
    assert fitted(OtsuThreshold(), [(x, y)]).choice.tolist() == [0, 0, 0]
    y[..., 1:3], y[..., 3:] = 0, IGNORED  # nor are they objects
    assert fitted(OtsuThreshold(), [(x, y)]).choice.tolist() == [0, 0, 0]


def test_an_image_without_contrast_has_no_objects():
    x = torch.stack([torch.zeros(1, 9, 9), torch.full((1, 9, 9), 1e5)])
    net = OtsuThreshold()
    for view in range(len(net.VIEWS)):
        for side in (0, 1):
            net.choice = torch.tensor([0, view, side])
            assert (net(x).argmax(1) == 0).all()
    # The smallest step that float32 knows.
    x[1, 0, 4, 4] = torch.tensor(1e5).nextafter(torch.tensor(2e5))
    net.choice = torch.tensor([0, 0, 0])
    assert net(x)[1].argmax(0).sum() == 1


# Trees ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def spied(monkeypatch):
    """The trees of scikit-learn, as they are grown, the features and the classes."""
    grown = []

    class Spy(HistGradientBoostingClassifier):
        def fit(self, x, y):
            grown.append((self, x, y))
            return super().fit(x, y)

    monkeypatch.setattr("project.baselines.trees.HistGradientBoostingClassifier", Spy)
    return grown


def features_of(x):
    features = LocalFilters()(x)
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1]).numpy()


def probabilities(logits):
    return softmax(logits.double().permute(0, 2, 3, 1).flatten(0, 2).numpy(), axis=1)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_trees_predict_what_scikit_learn_predicts(classes, channels, spied):
    net = fitted(small_trees(classes), masks(classes, channels))
    x = masks(classes, channels, 1, (31, 18), seed=7)[0][0]
    logits = net(x)
    assert logits.shape == (2, classes, 31, 18)
    assert logits.dtype == torch.float32
    expected = spied[0][0].predict_proba(features_of(x))
    assert expected.shape[1] == classes
    np.testing.assert_allclose(probabilities(logits), expected, atol=5e-6)
    assert expected.std(0).min() > 0.05


def test_trees_do_not_see_pixels_that_are_not_annotated(spied):
    """The value of a pixel says whether it was."""
    shape = (2, 1, 24, 20)
    batches = []
    for value in (-1, 2, IGNORED):
        y = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (2, 24, 20)))
        hidden = torch.rand(2, 24, 20) < 0.5
        x = torch.where(hidden[:, None], 100.0, 0.0).expand(shape)
        batches.append((x, torch.where(hidden, value, y)))
    fitted(small_trees(n_pixels=10_000), batches)
    _, x, y = spied[0]
    assert len(x) == sum(int((y < 2).sum() - (y < 0).sum()) for _, y in batches)
    assert (x[:, 0] == 0).all()
    assert set(y) == {0, 1}


# Which pixels are drawn -----------------------------------------------------------------------------------------------


def drawn(batches, n_pixels):
    trees = PixelTrees(n_pixels=n_pixels)
    return trees._sample((x, y[:, None], y >= 0) for x, y in batches)


def numbered(n_images, size=(8, 10)):
    """Images in which every pixel has its own number."""
    x = torch.arange(n_images * size[0] * size[1]).reshape(n_images, 1, *size).float()
    return x, x[:, 0].long() * 2


def test_pixels_do_not_depend_on_the_batches_they_came_in():
    x, y = numbered(12)
    y[:, 3] = -1
    whole = drawn([(x, y)], 150)
    for size in (1, 5):
        parts = drawn([(x[i : i + size], y[i : i + size]) for i in range(0, 12, size)], 150)
        for a, b in zip(whole, parts, strict=True):
            assert a.tobytes() == b.tobytes()
    features, targets = whole
    assert len(np.unique(features[:, 0])) == 150
    assert np.array_equal(targets[:, 0], 2 * features[:, 0])  # of the same pixel
    assert np.array_equal(features, features_of(x)[features[:, 0].astype(int)])


# What all have in common ----------------------------------------------------------------------------------------------

FITTED = {
    "majority of pixels": (lambda: MajorityClass(3), masks(3)),
    "majority of images": (lambda: MajorityClass(3), labels(3)),
    "majority of labels": (lambda: MajorityClass(3), labels(3, multi_label=True)),
    "colour": (lambda: ColorClassifier(3), labels(3)),
    "colour of two": (lambda: ColorClassifier(2), labels(2)),
    "colour of labels": (lambda: ColorClassifier(3), labels(3, multi_label=True)),
    "otsu": (OtsuThreshold, masks(channels=2)),
    "trees": (small_trees, masks()),
    "trees of three": (lambda: small_trees(3), masks(3)),
}
each_baseline = pytest.mark.parametrize("name", FITTED)


@each_baseline
def test_a_fresh_baseline_takes_all_from_the_checkpoint(name, tmp_path):
    make, batches = FITTED[name]
    net = fitted(make(), batches)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    state = torch.load(tmp_path / "net.pt", weights_only=True)
    x = batches[1][0][:, :, :8]
    for fresh in (make(), fitted(make(), [(x[:, :1], y) for x, y in batches[2:]])):
        fresh.load_state_dict(state, strict=True)
        assert torch.equal(fresh(x), net(x))


@each_baseline
def test_fitting_is_repeatable_and_forward_finite_on_any_size(name):
    make, batches = FITTED[name]
    net, again = fitted(make(), batches), fitted(make(), batches)
    for size in ((24, 20), (2, 2), (3, 40)):
        x = torch.randn(3, batches[0][0].shape[1], *size, generator=torch.Generator().manual_seed(0)) * 10
        logits = net(x)
        assert torch.equal(again(x), logits)
        assert logits.shape in {(3, make().__dict__.get("classes", 2)), (3, make().__dict__.get("classes", 2), *size)}
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()


@pytest.mark.parametrize("name", [name for name in FITTED if "labels" not in name])
def test_targets_without_any_class_are_refused(name):
    make, batches = FITTED[name]
    with pytest.raises(UserError, match=r"nothing to fit .* no label or pixel is of class 0\.\.[12]$"):
        make().fit([(x, torch.full_like(y, IGNORED)) for x, y in batches])
