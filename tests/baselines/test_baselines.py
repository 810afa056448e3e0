import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude
from sklearn.ensemble import HistGradientBoostingRegressor

from project.baselines.base import fit_to_batches
from project.baselines.colors import PixelRegression
from project.baselines.means import ImageMean, TrainingMean
from project.baselines.trees import BoostedTrees, LocalFilters
from project.data.datamodule import ImageDataModule
from project.data.store import SplitReader
from project.tasks.translation import TranslationTask


def pairs(n_batches=3, channels=1, targets=1, size=(24, 20), seed=0):
    """Batches of input and target; the target follows from the pixel and from what surrounds it."""
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(n_batches):
        x = gaussian_filter(rng.normal(size=(2, channels, *size)), (0, 0, 1, 1)) * 4
        y = np.stack(
            [(c + 1) * x[:, c % channels] + gaussian_filter(x[:, 0], (0, 2, 2)) * 3 for c in range(targets)], 1
        )
        batches.append((torch.from_numpy(x).float(), torch.from_numpy(y).float()))
    return batches


def error(net, batches):
    return np.mean([(net(x) - y).square().mean().item() for x, y in batches])


# Means ----------------------------------------------------------------------------------------------------------------


def test_the_training_mean_is_that_of_all_pixels():
    batches = [*pairs(targets=2), *pairs(1, targets=2, size=(50, 3))]
    net = TrainingMean()
    net.fit(batches)
    pixels = np.concatenate([y.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 2) for _, y in batches])
    np.testing.assert_allclose(net.mean.flatten().numpy(), pixels.mean(0), rtol=1e-6)
    prediction = net(torch.zeros(3, 1, 7, 9))
    assert prediction.shape == (3, 2, 7, 9)
    np.testing.assert_allclose(prediction[2, :, 6, 8].numpy(), pixels.mean(0), rtol=1e-6)


def test_the_training_mean_has_an_r2_of_zero_on_the_training_split(tiny_dataset, make_trainer):
    data = ImageDataModule(dataset=tiny_dataset.name, root=str(tiny_dataset.parent))
    data.roles = TranslationTask.inputs
    task = TranslationTask(TrainingMean(), statistics=data.statistics, channels=data.channels)
    fit_to_batches(task, data.eval_dataloader("train"))
    make_trainer().validate(task, data.eval_dataloader("train"), verbose=False)
    assert task.results.metrics["r2_pooled"] == pytest.approx(0, abs=1e-6)
    assert task.results.undefined == {"pearson": 12}


def test_the_image_mean_has_an_r2_of_zero_on_each_image(tiny_dataset, make_trainer):
    """Images of 48 x 40 are padded to 64 x 64 for the network: the target is not."""
    data = ImageDataModule(dataset=tiny_dataset.name, root=str(tiny_dataset.parent), eval_batch_size=2)
    data.roles = TranslationTask.inputs
    task = TranslationTask(ImageMean(), statistics=data.statistics, channels=data.channels, size_divisor=64)
    make_trainer().validate(task, datamodule=data, verbose=False)
    np.testing.assert_allclose(task.results.rows["r2"], 0, atol=1e-5)
    assert task.results.undefined["pearson"] == 5
    targets = np.stack([SplitReader(tiny_dataset / "val.h5").read("target", i) for i in range(5)])
    expected = targets.mean((1, 2, 3)).std() / targets.std()
    assert task.results.metrics["pearson_pooled"] == pytest.approx(expected, rel=1e-5)


# Pixel by pixel -------------------------------------------------------------------------------------------------------


def test_pixel_regression_finds_a_cubic():
    batches = [(x, 2 - x + 0.5 * x**2 - 0.3 * x**3) for x, _ in pairs()]
    net = PixelRegression()
    net.fit(batches)
    np.testing.assert_allclose(net.weight[:, 0].numpy(), [2, -1, 0.5, -0.3], atol=1e-5)
    assert error(net, batches) < 1e-9


def test_pixel_regression_finds_products_of_channels():
    def truth(x):
        a, b = x[:, 0], x[:, 1]
        return torch.stack([1 + a * b - b**2, 3 * a - a * b**2, b], dim=1)

    batches = [(x, truth(x)) for x, _ in pairs(channels=2)]
    net = PixelRegression()
    net.fit(batches)
    assert net.weight.shape == (10, 3)
    new = pairs(1, channels=2, seed=9)[0][0]
    torch.testing.assert_close(net(new), truth(new), atol=1e-4, rtol=1e-4)


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
    # Central differences of the blurred image are close to the derivative of the Gaussian.
    expected = gaussian_gradient_magnitude(x[0, 0].numpy(), 4, mode="nearest")
    np.testing.assert_allclose(features[0, 8, 0], expected, atol=0.1 * expected.max())


def small_trees(**options):
    return BoostedTrees(**{"n_trees": 12, "max_leaves": 7, "n_pixels": 1500, **options})


@pytest.fixture
def spied(monkeypatch):
    """The trees of scikit-learn, as they are grown, and the features they are grown from."""
    grown = []

    class Spy(HistGradientBoostingRegressor):
        def fit(self, x, y):
            grown.append((self, x))
            return super().fit(x, y)

    monkeypatch.setattr("project.baselines.trees.HistGradientBoostingRegressor", Spy)
    return grown


def features_of(x):
    features = LocalFilters()(x)
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1]).numpy()


def test_the_trees_predict_what_scikit_learn_predicts(spied):
    net = small_trees(max_leaves=31)
    net.fit(pairs(channels=2, targets=2))
    x = pairs(1, channels=2, seed=7)[0][0]
    each = [trees.predict(features_of(x)).reshape(2, 24, 20) for trees, _ in spied]
    assert len(each) == 2
    np.testing.assert_allclose(net(x).numpy(), np.stack(each, axis=1), atol=1e-6, rtol=1e-6)
    assert not np.allclose(each[0], each[1])


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [TrainingMean, ImageMean, PixelRegression, small_trees])
def test_a_fresh_baseline_takes_its_shapes_from_the_checkpoint(make, tmp_path):
    net = make()
    net.fit(pairs(channels=2, targets=2))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    state = torch.load(tmp_path / "net.pt", weights_only=True)
    fresh, stale = make(), make()
    stale.fit(pairs(1, channels=1, targets=1))
    x, y = pairs(1, channels=2, targets=2, seed=3)[0]
    arguments = (x, y) if isinstance(net, ImageMean) else (x,)
    for other in (fresh, stale):
        other.load_state_dict(state, strict=True)
        assert torch.equal(other(*arguments), net(*arguments))


def test_a_fitted_task_is_validated_and_loaded_as_any_other(tiny_dataset, make_trainer, tmp_path):
    data = ImageDataModule(dataset=tiny_dataset.name, root=str(tiny_dataset.parent), crop=16, crops_per_image=2)
    data.roles = TranslationTask.inputs
    task = TranslationTask(small_trees(), statistics=data.statistics, channels=data.channels)
    fit_to_batches(task, data.eval_dataloader("train"))
    trainer = make_trainer()
    trainer.validate(task, datamodule=data, verbose=False)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert task.results.metrics["r2_pooled"] > 0.5

    fresh = TranslationTask(small_trees(), statistics=data.statistics, channels=data.channels)
    make_trainer().validate(fresh, datamodule=data, ckpt_path=tmp_path / "a.ckpt", weights_only=True, verbose=False)
    assert fresh.results.metrics == task.results.metrics
