"""Baselines, against NumPy, SciPy and scikit-learn; and what all of them have in common."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.special import expit, softmax
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from project.baselines.base import fit_to_batches
from project.baselines.colors import ColorClassifier, PixelRegression
from project.baselines.means import ImageMean, MajorityClass, TrainingMean
from project.baselines.pixels import sample_pixels
from project.baselines.threshold import OtsuThreshold
from project.baselines.trees import BoostedTrees, BoostedTreesClassifier, LocalFilters
from project.data.datamodule import ImageDataModule
from project.data.store import SplitReader
from project.errors import UserError
from project.tasks.translation import TranslationTask

IGNORED = 255


def pairs(channels=1, targets=1, n_batches=3, size=(24, 20), seed=0):
    """Batches of input and target; the target follows from the pixel and from what surrounds it."""
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(n_batches):
        x = gaussian_filter(rng.normal(size=(2, channels, *size)), (0, 0, 1, 1)) * 4
        around = gaussian_filter(x[:, 0], (0, 2, 2)) * 3
        y = np.stack([(c + 1) * x[:, c % channels] + around for c in range(targets)], 1)
        batches.append((torch.from_numpy(x).float(), torch.from_numpy(y).float()))
    return batches


def masks(classes=2, channels=1, n_batches=3, size=(24, 20), seed=0):
    """Batches of images and classes of pixels that the surroundings half explain; a tenth is not annotated."""
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(n_batches):
        x = gaussian_filter(rng.normal(size=(2, channels, *size)), (0, 0, 1, 1)) * 4
        score = gaussian_filter(x[:, 0], (0, 1, 1)) + rng.normal(0, 0.3, (2, *size))
        y = np.digitize(score, np.linspace(-0.7, 0.9, classes - 1))
        y[rng.random(y.shape) < 0.1] = IGNORED
        batches.append((torch.from_numpy(x).float(), torch.from_numpy(y)))
    return batches


def labels(classes=3, multi_label=False, n_batches=4, seed=0):
    """Batches of images and labels that brightness and contrast half explain."""
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(n_batches):
        brightness, contrast = rng.normal(size=(2, 10, 2, 1, 1))
        x = brightness + np.exp(contrast) * rng.normal(size=(10, 2, 9, 11))
        score = np.stack([brightness[:, 0, 0, 0], contrast[:, -1, 0, 0], np.full(10, 0.5), np.full(10, 0.4)], 1)
        score = score[:, :classes] + rng.normal(0, 0.5, (10, classes))
        y = torch.from_numpy((score > 0.3).astype(np.float32) if multi_label else score.argmax(1))
        batches.append((torch.from_numpy(x).float(), y))
    return batches


def fitted(net, batches):
    net.fit(iter(batches))
    return net


def together(batches):
    return torch.cat([x for x, _ in batches]).numpy(), torch.cat([y for _, y in batches]).numpy()


def small_trees(classes=0, **options):
    options = {"n_trees": 10, "max_leaves": 7, "n_pixels": 1500, **options}
    return BoostedTreesClassifier(classes, **options) if classes else BoostedTrees(**options)


def task_of(folder, net, **options):
    """A translation task, and its data."""
    data = ImageDataModule(dataset=folder.name, root=str(folder.parent), eval_batch_size=2)
    data.roles = TranslationTask.inputs
    return TranslationTask(net, statistics=data.statistics, channels=data.channels, **options), data


# Means and frequencies ------------------------------------------------------------------------------------------------


def test_the_training_mean_is_that_of_all_pixels():
    batches = [*pairs(targets=2), *pairs(targets=2, n_batches=1, size=(50, 3))]
    net = fitted(TrainingMean(), batches)
    pixels = np.concatenate([y.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 2) for _, y in batches])
    prediction = net(torch.zeros(3, 1, 7, 9))
    assert prediction.shape == (3, 2, 7, 9)
    np.testing.assert_allclose(prediction[2, :, 6, 8].numpy(), pixels.mean(0), rtol=1e-6)


def test_the_training_mean_has_an_r2_of_zero_on_the_training_split(tiny_dataset, make_trainer):
    task, data = task_of(tiny_dataset, TrainingMean())
    fit_to_batches(task, data.eval_dataloader("train"))
    make_trainer().validate(task, data.eval_dataloader("train"), verbose=False)
    assert task.results.metrics["r2_pooled"] == pytest.approx(0, abs=1e-6)
    assert task.results.undefined == {"pearson": 12}


def test_the_image_mean_has_an_r2_of_zero_on_each_image(tiny_dataset, make_trainer):
    """Images of 48 x 40 are padded to 64 x 64 for the network: the target is not."""
    task, data = task_of(tiny_dataset, ImageMean(), size_divisor=64)
    make_trainer().validate(task, datamodule=data, verbose=False)
    np.testing.assert_allclose(task.results.rows["r2"], 0, atol=1e-5)
    assert task.results.undefined["pearson"] == 5
    targets = np.stack([SplitReader(tiny_dataset / "val.h5").read("target", i) for i in range(5)])
    expected = targets.mean((1, 2, 3)).std() / targets.std()
    assert task.results.metrics["pearson_pooled"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["pixels", "images", "labels"])
def test_the_frequencies_of_the_classes_are_predicted(kind):
    batches = [*masks(3), *masks(3, n_batches=1, size=(50, 7))] if kind == "pixels" else labels(3, kind == "labels")
    if kind == "labels":
        for _, y in batches:
            y[:, 2] = 1  # always
    y = np.concatenate([y.numpy().ravel() for _, y in batches]) if kind == "pixels" else together(batches)[1]
    expected = np.bincount(y[y < 3]) / (y < 3).sum() if kind != "labels" else y.mean(0)
    logits = fitted(MajorityClass(4 if kind == "pixels" else 3), batches)(torch.zeros(5, 2, 5, 6))
    assert logits.shape == ((5, 4, 5, 6) if kind == "pixels" else (5, 3))
    assert logits.isfinite().all()
    found = logits.sigmoid() if kind == "labels" else logits.softmax(1)
    np.testing.assert_allclose(found.reshape(5, len(found[0]), -1)[2, :3, -1], expected, atol=2e-6)


# Colors and pixels ----------------------------------------------------------------------------------------------------


def colors(x):
    x = x.astype(np.float64)
    return np.concatenate([x.mean((2, 3)), x.std((2, 3))], 1)


def reference(x, y):
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000)).fit(colors(x), y)


@pytest.mark.parametrize("classes", [2, 4])
def test_mean_color_is_scikit_learns_logistic_regression(classes):
    batches, new = labels(classes), together(labels(seed=9))[0]
    expected = reference(*together(batches)).predict_proba(colors(new))
    logits = fitted(ColorClassifier(classes), batches)(torch.from_numpy(new))
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=1e-5)
    assert expected.std(0).min() > 0.01


def test_mean_color_leaves_out_what_is_not_labeled_and_what_never_occurs():
    batches = [(x, torch.where(y == 1, 3, y)) for x, y in labels(3)]  # classes 0, 2, 3 of 5
    batches[1][1][4:7], batches[2][1][0] = -1, 255
    x, y = together(batches)
    expected = reference(x[(y >= 0) & (y < 5)], y[(y >= 0) & (y < 5)]).predict_proba(colors(x))
    logits = fitted(ColorClassifier(5), batches)(torch.from_numpy(x))
    np.testing.assert_allclose(logits.softmax(1)[:, [0, 2, 3]], expected, atol=1e-5)
    assert logits[:, [1, 4]].unique().tolist() == pytest.approx([math.log(1e-6)])


def test_mean_color_fits_each_of_several_labels():
    batches = labels(4, multi_label=True)
    for _, y in batches:
        y[:, 2], y[:, 3] = 0, 1
    x, y = together(batches)
    logits = fitted(ColorClassifier(4), batches)(torch.from_numpy(x))
    first, second = (reference(x, y[:, k]).predict_proba(colors(x))[:, 1] for k in (0, 1))
    expected = np.stack([first, second, np.full(len(x), 1e-6), np.full(len(x), 1 - 1e-6)], 1)
    np.testing.assert_allclose(expit(logits.double().numpy()), expected, atol=1e-5)


def test_pixel_regression_finds_cubics_and_products_of_channels():
    def truth(x):
        a, b = x[:, 0], x[:, 1]
        return torch.stack([1 + a * b - b**2, 3 * a - a * b**2, 2 - a + 0.5 * a**2 - 0.3 * a**3], dim=1)

    net = fitted(PixelRegression(), [(x, truth(x)) for x, _ in pairs(channels=2)])
    assert net.weight.shape == (10, 3)
    new = pairs(channels=2, n_batches=1, seed=9)[0][0]
    torch.testing.assert_close(net(new), truth(new), atol=1e-4, rtol=1e-4)


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
    [({"sign": 1.0}, {0, 1}, 0), ({"sign": -1.0}, {0, 1}, 1), ({"sign": 0.0, "texture": 1.0}, {2, 3}, 0)],
)
def test_otsu_chooses_what_tells_the_objects(options, views, side):
    net = fitted(OtsuThreshold(), [discs(**options), discs(1, size=(50, 50), **options)])
    channel, view, below = net.choice.tolist()
    assert (channel, below) == (0, side)
    assert view in views
    x, y = discs(5, size=(64, 50), **options)
    assert dice(net(x), y) > 0.9


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


# Filters and trees ----------------------------------------------------------------------------------------------------


def test_features_are_those_of_scipy():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 2, 40, 50))).float()
    features = LocalFilters()(x).numpy().reshape(2, 13, 2, 40, 50)
    assert np.array_equal(features[:, 0], x.numpy())
    for i, sigma in enumerate((1, 2, 4, 8)):
        mean, slope, deviation = features[:, 1 + 3 * i], features[:, 2 + 3 * i], features[:, 3 + 3 * i]
        wide = {"sigma": (0, 0, sigma, sigma), "mode": "nearest", "truncate": 3}
        blurred = gaussian_filter(x.double().numpy(), **wide)
        np.testing.assert_allclose(mean, blurred, atol=1e-4)
        np.testing.assert_allclose(slope, np.hypot(*np.gradient(blurred, axis=(2, 3))), atol=1e-4)
        squares = gaussian_filter(x.double().numpy() ** 2, **wide)
        np.testing.assert_allclose(deviation, np.sqrt(squares - blurred**2), atol=1e-3)


@pytest.fixture
def spied(monkeypatch):
    """The trees of scikit-learn, as they are grown, the features and the targets."""
    grown = []
    for base in (HistGradientBoostingRegressor, HistGradientBoostingClassifier):

        def fit(self, x, y, base=base):
            grown.append((self, x, y))
            return base.fit(self, x, y)

        monkeypatch.setattr(f"project.baselines.trees.{base.__name__}", type(base.__name__, (base,), {"fit": fit}))
    return grown


def features_of(x):
    features = LocalFilters()(x)
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1]).numpy()


def test_regression_trees_predict_what_scikit_learn_predicts(spied):
    net = fitted(small_trees(max_leaves=31), pairs(channels=2, targets=2))
    x = pairs(channels=2, n_batches=1, seed=7)[0][0]
    expected = [trees.predict(features_of(x)).reshape(2, 24, 20) for trees, *_ in spied]
    np.testing.assert_allclose(net(x).numpy(), np.stack(expected, axis=1), atol=1e-6, rtol=1e-6)
    assert not np.allclose(*expected)


@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (2, 2), (5, 2)])
def test_classification_trees_predict_what_scikit_learn_predicts(classes, channels, spied):
    net = fitted(small_trees(classes), masks(classes, channels))
    x = masks(classes, channels, 1, (31, 18), seed=7)[0][0]
    expected = spied[0][0].predict_proba(features_of(x))
    logits = net(x).double().permute(0, 2, 3, 1).flatten(0, 2).numpy()
    np.testing.assert_allclose(softmax(logits, axis=1), expected, atol=5e-6)
    assert expected.std(0).min() > 0.05


def test_trees_do_not_see_pixels_that_are_not_annotated(spied):
    """The value of a pixel says whether it was."""
    batches = []
    for value in (-1, 2, IGNORED):
        y = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (2, 24, 20)))
        hidden = torch.rand(2, 24, 20) < 0.5
        batches.append((torch.where(hidden[:, None], 100.0, 0.0), torch.where(hidden, value, y)))
    fitted(small_trees(2, n_pixels=10_000), batches)
    _, x, y = spied[0]
    assert len(x) == sum(int((y < 2).sum() - (y < 0).sum()) for _, y in batches)
    assert (x[:, 0] == 0).all()
    assert set(y) == {0, 1}


def test_sampled_pixels_do_not_depend_on_the_batches_they_came_in():
    x = torch.arange(12 * 80).reshape(12, 1, 8, 10).float()  # every pixel has its own number
    y = 2 * x.long()
    y[:, 0, 3] = -1

    def sampled(size):
        batches = ((x[i : i + size], y[i : i + size], y[i : i + size, 0] >= 0) for i in range(0, 12, size))
        return sample_pixels(batches, 150, lambda x, image, pixel: x.flatten(2)[image, :, pixel])

    features, targets = sampled(12)
    assert len(np.unique(features)) == 150
    assert np.array_equal(targets, 2 * features)  # of the same pixel
    for size in (1, 5):
        for a, b in zip(sampled(size), (features, targets), strict=True):
            assert a.tobytes() == b.tobytes()


# What all have in common ----------------------------------------------------------------------------------------------

FITTED = {
    "mean": (TrainingMean, pairs(2, 2)),
    "pixel": (PixelRegression, pairs(2, 2)),
    "regression trees": (small_trees, pairs(2, 2)),
    "majority of pixels": (lambda: MajorityClass(3), masks(3)),
    "majority of images": (lambda: MajorityClass(3), labels(3)),
    "majority of labels": (lambda: MajorityClass(3), labels(3, multi_label=True)),
    "color": (lambda: ColorClassifier(3), labels(3)),
    "color of two": (lambda: ColorClassifier(2), labels(2)),
    "color of labels": (lambda: ColorClassifier(3), labels(3, multi_label=True)),
    "otsu": (OtsuThreshold, masks(channels=2)),
    "trees": (lambda: small_trees(2), masks()),
    "trees of three": (lambda: small_trees(3), masks(3)),
}


@pytest.mark.parametrize("name", FITTED)
def test_fitting_is_repeatable_and_a_fresh_baseline_takes_all_from_the_checkpoint(name, tmp_path):
    make, batches = FITTED[name]
    net, again = fitted(make(), batches), fitted(make(), batches)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    state = torch.load(tmp_path / "net.pt", weights_only=True)
    other = fitted(make(), [(x[:, :1], y[:, :1] if y.ndim == 4 else y) for x, y in batches[1:]])
    loaded = [make(), other]
    for fresh in loaded:
        fresh.load_state_dict(state, strict=True)
    n_outputs = getattr(net, "classes", 2)
    for size in ((24, 20), (2, 2), (3, 40)):
        x = torch.randn(3, batches[0][0].shape[1], *size, generator=torch.Generator().manual_seed(0)) * 10
        output = net(x)
        assert output.shape in {(3, n_outputs), (3, n_outputs, *size)}
        assert output.dtype == torch.float32
        assert output.isfinite().all()
        assert all(torch.equal(copy(x), output) for copy in (again, *loaded))


@pytest.mark.parametrize("name", [name for name in FITTED if FITTED[name][1][0][1].dtype == torch.int64])
def test_targets_without_any_class_are_refused(name):
    make, batches = FITTED[name]
    with pytest.raises(UserError, match=r"nothing to fit .* no label or pixel is of class 0\.\.[12]$"):
        make().fit([(x, torch.full_like(y, IGNORED)) for x, y in batches])


def test_a_fitted_task_is_validated_and_loaded_as_any_other(tiny_dataset, make_trainer, tmp_path):
    task, data = task_of(tiny_dataset, small_trees())
    fit_to_batches(task, data.eval_dataloader("train"))
    trainer = make_trainer()
    trainer.validate(task, datamodule=data, verbose=False)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert task.results.metrics["r2_pooled"] > 0.5
    fresh, _ = task_of(tiny_dataset, small_trees())
    make_trainer().validate(fresh, datamodule=data, ckpt_path=tmp_path / "a.ckpt", weights_only=True, verbose=False)
    assert fresh.results.metrics == task.results.metrics
