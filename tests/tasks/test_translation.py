import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from torch import nn

from project.data.datamodule import ImageDataModule
from project.data.store import SplitReader
from project.errors import UserError
from project.tasks.translation import TranslationTask


def channel(mean, std):
    cuts = {"0.1": -3, "1": -2, "99": 2, "99.9": 3}
    percentiles = {cut: mean + n * std for cut, n in cuts.items()}
    return {"n": 9, "mean": mean, "std": std, "min": mean - 3 * std, "max": mean + 3 * std, "percentiles": percentiles}


STATISTICS = {"image": [channel(10_000.0, 500.0)], "target": [channel(50.0, 5.0)]}


class Curve(nn.Module):
    """Works pixel by pixel, so that its output cannot depend on the batch; counts how often it is called."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.9, 0.1]))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.weight[0] * x + self.weight[1] * x**2


class Task(TranslationTask):
    """With an optimizer, as the command line adds one."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def module(folder, **options):
    data = ImageDataModule(dataset=folder.name, root=str(folder.parent), **{"batch_size": 4, **options})
    data.roles = TranslationTask.inputs
    return data


def task_for(data, net=None, **options):
    return Task(net or Curve(), statistics=data.statistics, channels=data.channels, **{"size_divisor": 8, **options})


def validated(make_trainer, data, net=None, **options):
    task = task_for(data, net, **options)
    make_trainer().validate(task, datamodule=data, verbose=False)
    return task.results


# Units and sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (32, 64), (45, 37), (7, 100)])
def test_any_size_is_padded_for_the_network_and_cut_back(size):
    given = []

    class Spy(nn.Module):
        def forward(self, x):
            given.append(x)
            return x

    task = TranslationTask(Spy(), statistics=STATISTICS, size_divisor=32)
    x = torch.randn(2, 1, *size)
    assert torch.equal(task.apply_net(x), x)
    padded = given[0]
    assert all(new % 32 == 0 and new - 32 < old <= new for new, old in zip(padded.shape[2:], size, strict=True))
    corner = x[..., -1:, -1:]
    assert torch.equal(padded[..., size[0] :, size[1] :], corner.expand_as(padded[..., size[0] :, size[1] :]))


def test_reduced_precision_ends_at_the_network():
    net = nn.Conv2d(1, 2, 3, padding=1)
    statistics = {"image": STATISTICS["image"], "target": [channel(63_001.0, 5.0)] * 2}
    task = TranslationTask(net, statistics=statistics)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(torch.zeros(1, 1, 8, 8)).dtype == torch.bfloat16
        assert task.apply_net(torch.zeros(1, 1, 8, 8)).dtype == torch.float32
        prediction = task(torch.full((2, 1, 20, 24), 10_000, dtype=torch.uint16))
    assert prediction.dtype == torch.float32
    assert prediction.is_contiguous()
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (task(torch.zeros(1, 1, 8, 8)) == 63_001).all(), "bfloat16 knows no 63001"


@pytest.mark.parametrize(
    ("known", "message"),
    [([], "no training statistics"), (["target"], "no training statistics"), (["image"], "no target images")],
)
def test_missing_statistics_are_refused(known, message):
    with pytest.raises(UserError, match=message):
        TranslationTask(nn.Identity(), statistics={role: STATISTICS[role] for role in known})


# Training -------------------------------------------------------------------------------------------------------------


def test_only_the_input_is_augmented_and_only_in_training():
    class Shift(nn.Module):
        def forward(self, x):
            return x + 100

    task = TranslationTask(nn.Identity(), statistics=STATISTICS, intensity_augmentation=Shift(), size_divisor=1)
    batch = {"image": torch.randint(9000, 12000, (2, 1, 8, 8)), "target": torch.rand(2, 1, 8, 8)}
    (augmented, target), (plain, same) = task.train().forward_batch(batch), task.eval().forward_batch(batch)
    torch.testing.assert_close(augmented, plain + 100)
    assert torch.equal(target, same)


# Validation -----------------------------------------------------------------------------------------------------------

UNEVEN = {"n": {"train": 4, "val": 5}, "sizes": {"val": [(16, 20), (20, 16), (16, 20), (33, 17), (20, 16)]}}


@pytest.mark.parametrize("tiny_dataset", [{}, UNEVEN, {"low": 60_000, "high": 65_000}], indirect=True)
def test_metrics_do_not_depend_on_batches_or_workers(tiny_dataset, make_trainer):
    found = [
        validated(make_trainer, module(tiny_dataset, eval_batch_size=size, num_workers=workers))
        for size, workers in [(1, 0), (2, 0), (5, 0), (2, 2)]
    ]
    assert set(found[0].metrics) == {
        *("loss", "mse", "mae", "r2", "pearson", "psnr", "ssim"),
        *("mse_pooled", "mae_pooled", "r2_pooled", "pearson_pooled"),
    }
    for results in found:
        assert results.metrics == pytest.approx(found[0].metrics, rel=1e-9)
        assert results.index.tolist() == list(range(5)), "rows stand in the order of the split"
        for name, column in results.rows.items():
            assert column.dtype == torch.float64
            torch.testing.assert_close(column, found[0].rows[name], rtol=1e-9, atol=0)


@pytest.mark.parametrize("tiny_dataset", [{}, UNEVEN], indirect=True)
def test_rows_and_metrics_are_those_of_the_whole_raw_images(tiny_dataset, make_trainer):
    data = module(tiny_dataset, batch_size=2, crop=16, eval_batch_size=2)
    results = validated(make_trainer, data)
    reader = SplitReader(tiny_dataset / "val.h5")
    with torch.no_grad():
        task = task_for(data)
        errors = [
            task(torch.from_numpy(reader.read("image", i))[None])[0].double().numpy() - reader.read("target", i)
            for i in range(5)
        ]
    expected = [float((error**2).mean()) for error in errors]
    assert results.rows["mse"].tolist() == pytest.approx(expected, rel=1e-6)
    assert results.metrics["mse"] == pytest.approx(np.mean(expected), rel=1e-6)
    scale = data.statistics["target"][0]["std"]
    assert results.metrics["loss"] == pytest.approx(np.mean(expected) / scale**2, rel=1e-4)


def test_scores_that_are_not_defined_are_counted_and_left_out(tiny_dataset, make_trainer):
    class Nothing(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x)

    results = validated(make_trainer, module(tiny_dataset), Nothing())
    assert results.undefined == {"pearson": 5}
    assert "pearson" not in results.metrics
    assert "pearson_pooled" not in results.metrics
    assert results.rows["pearson"].isnan().all()
    assert results.metrics["mse"] > 0


@pytest.mark.parametrize("shapes", [[(20, 24)] * 3, [(20, 24), (16, 16), (30, 12)]])
def test_pooled_scores_of_several_channels_are_over_the_pixels_of_all(shapes):
    statistics = {"image": STATISTICS["image"], "target": [channel(50.0, 5.0), channel(90.0, 20.0)]}
    task = TranslationTask(nn.Identity(), statistics=statistics, channels={"target": ["a", "b"]})
    generator, rows, pixels = torch.Generator().manual_seed(0), [], []
    for shape in shapes:
        target = torch.randn(1, 2, *shape, generator=generator) * torch.tensor([5.0, 20.0])[:, None, None] + 50
        target[:, 1] += 40
        predicted = target + 8 * torch.randn(target.shape, generator=generator)
        rows.append({"loss": torch.zeros(len(target)), **task.metrics.columns(predicted, {"target": target})})
        pixels.append((target.flatten().double(), predicted.flatten().double()))
    metrics, _ = task.metrics.aggregate({name: torch.cat([row[name] for row in rows]) for name in rows[0]})
    true, predicted = (torch.cat(x).numpy() for x in zip(*pixels, strict=True))
    assert metrics["r2_pooled"] == pytest.approx(r2_score(true, predicted), rel=1e-5)
    assert metrics["pearson_pooled"] == pytest.approx(np.corrcoef(true, predicted)[0, 1], rel=1e-5)
    assert metrics["mse_pooled"] == pytest.approx(((true - predicted) ** 2).mean(), rel=1e-5)
    assert metrics["r2_pooled"] != pytest.approx((metrics["r2_pooled/a"] + metrics["r2_pooled/b"]) / 2, abs=0.1)


# Checkpoints ----------------------------------------------------------------------------------------------


def test_a_checkpoint_is_plain_and_holds_all_that_a_prediction_needs(tiny_dataset, make_trainer, tmp_path):
    data, trainer = module(tiny_dataset), make_trainer(max_epochs=1)
    task = task_for(data)
    trainer.fit(task, datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    expected = {"statistics": data.statistics, "channels": data.channels, "classes": {}, "ignore_index": None}
    assert checkpoint["data"] == expected

    restored = TranslationTask(Curve(), **checkpoint["data"])
    restored.load_state_dict(checkpoint["state_dict"])
    raw = torch.from_numpy(SplitReader(tiny_dataset / "val.h5").read("image", 0))[None]
    with torch.no_grad():
        assert torch.equal(restored(raw), task(raw))

    # Statistics come from the checkpoint even into a task that was made with others.
    other = Task(Curve(), statistics=STATISTICS, size_divisor=8)
    make_trainer().validate(other, datamodule=data, ckpt_path=tmp_path / "a.ckpt", weights_only=True, verbose=False)
    assert other.results.metrics == pytest.approx(task.results.metrics, rel=1e-9)


def test_a_network_that_returns_several_outputs_is_explained():
    class Several(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(UserError, match=r"returns a tuple(.|\n)*\[0\]"):
        TranslationTask(Several(), statistics=STATISTICS)(torch.zeros(1, 1, 32, 32))


def test_a_logarithmic_target_bounds_what_the_network_may_exceed_it_by(tiny_dataset):
    statistics = module(tiny_dataset).statistics
    task = TranslationTask(nn.Identity(), statistics=statistics, target_normalization="asinh")
    low, high = (statistics["target"][0][name] for name in ("min", "max"))
    values = torch.linspace(low, high, 64).view(1, 1, 8, 8)
    torch.testing.assert_close(task.decode_output(task.make_target({"target": values})), values)
    assert high < task.decode_output(torch.full((1, 1, 8, 8), 1e3)).max() <= 2.1 * high
