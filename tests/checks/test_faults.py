"""Every fault that `make check` is to find, put into an experiment that works."""

import json
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from project.checks import data, inputs, machine, network, preflight, sampling
from project.checks.verdicts import SIDE, Context
from project.data.dataset import ShuffledSampler, SplitDataset
from project.data.statistics import measure_image
from project.losses import CrossEntropy
from project.models.unet import UNet
from project.runs.run_folder import Run
from project.training import batch_size as batch
from project.training.lightning_cli import ExperimentCLI
from project.transforms.intensity import IntensityAugmentation
from project.transforms.normalize import Normalize

DEFAULT = Path(__file__).parents[2] / "configs/default.yaml"
N = {"train": 24, "val": 8, "test": 4}
ROLES = {"translation": ("image", "target"), "segmentation": ("image", "mask"), "classification": ("image",)}
OUTPUTS = {"translation": 1, "segmentation": 2}
CPU = torch.device("cpu")


@pytest.fixture
def build(tmp_path, write_tiny):
    """Builds a small experiment that works; further words are typed keys, options are those of the data."""

    def make(kind: str = "translation", *typed: str, **options) -> ExperimentCLI:
        channels = options.get("channels", 1)
        made = {"shape": (64, 64), "n": N, "roles": ROLES[kind], "n_labels": 3 * (kind == "classification"), **options}
        name = f"set{len(list(tmp_path.glob('set*')))}"
        write_tiny(tmp_path / name, **made)
        if kind == "classification":
            arguments = {"encoder_name": "resnet18", "encoder_weights": None, "in_channels": channels, "depth": 3}
            net = {
                "class_path": "project.models.classifier.EncoderClassifier",
                "init_args": arguments | {"classes": made["n_labels"]},
            }
        else:
            arguments = {"in_channels": channels, "out_channels": OUTPUTS[kind], "width": 8, "depth": 1}
            net = {"class_path": "project.models.unet.UNet", "init_args": arguments}
        content = {
            "trainer": {"accelerator": "cpu", "max_epochs": 2},
            "model": {"class_path": f"project.tasks.{kind}.{kind.title()}Task", "init_args": {"net": net}},
            "data": {
                **{"dataset": name, "root": str(tmp_path), "batch_size": 4, "crop": 32},
                "transforms": [{"class_path": "albumentations.D4", "init_args": {"p": 1}}],
            },
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}},
        }
        cli = ExperimentCLI(
            [f"--config={DEFAULT}", f"--config={json.dumps(content)}", *typed], Run(tmp_path / "runs/e/now")
        )
        cli.datamodule.setup("fit")
        return cli

    return make


def verdicts(cli, *checks, kind="full"):
    """Name -> verdict, the worst of each name."""
    report = preflight.run(Context(cli, kind, CPU), checks)
    order = {"ok": 0, "warning": 1, "error": 2}
    return {v.name: v for v in sorted(report.verdicts, key=lambda v: order[v.level])}


def corrupt(reader, role, change):
    """Let a reader give `change(array, index)` in place of what lies in the file."""
    original = partial(type(reader).fill, reader)
    reader.image_statistics = {
        name: levels for name, levels in reader.image_statistics.items() if name != role
    }  # those of the file

    def whole(index):
        array = np.empty((1, *reader.shapes[role][index]), reader.dtypes[role])
        original(role, [index], None, array)
        return array[0]

    def fill(name, indices, windows, out):
        if name != role:
            original(name, indices, windows, out)
            return
        for position, index in enumerate(indices):
            height, width = reader.shapes[role][index][-2:]
            y0, y1, x0, x1 = windows[position] if windows else (0, height, 0, width)
            out[position] = change(whole, index)[..., y0:y1, x0:x1]

    reader.fill = fill


class Wrapped(nn.Module):
    """A U-Net and something behind it."""

    def __init__(self, last, out_channels=1, in_channels=1):
        super().__init__()
        self.net, self.last = UNet(in_channels, out_channels, 8, 1), last

    def forward(self, x):
        return self.last(self.net(x))


@pytest.mark.parametrize("kind", list(ROLES))
def test_a_working_experiment_gives_no_alarm(build, kind):
    report = preflight.run(Context(build(kind), "full", CPU), preflight.FULL)
    assert report.text("warning", "error") == ""
    assert report.safe
    assert len(report.verdicts) > 18


# 1. Normalisation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["image_mean_std", "image_percentile"])
def test_normalisation_of_each_image_gives_no_alarm(build, method):
    """The checks read the middle of large images; their statistics are those of the whole image all the same."""
    cli = build(
        "translation", f"--model.init_args.input_normalization={method}", shape=(600, 600), n=dict.fromkeys(N, 3)
    )
    assert cli.datamodule.readers["train"].shapes["image"][0][-1] > SIDE
    found = verdicts(cli, inputs.normalisation, sampling.intensity)
    assert {name: v.level for name, v in found.items() if v.level != "ok"} == {}


def test_input_normalised_twice(build):
    cli = build()
    once = cli.model.normalize_input
    cli.model.normalize = lambda raw: once(once(raw))
    found = verdicts(cli, inputs.normalisation)["image normalisation"]
    assert (found.level, "twice" in found.advice) == ("error", True)


@pytest.mark.parametrize(("low", "high"), [(0, 250), (9000, 12000)])
def test_input_divided_by_the_range_of_the_dtype(build, low, high):
    cli = build(low=low, high=high, target_offset=0)
    cli.model.normalize = lambda raw: raw.float() / 65535
    found = verdicts(cli, inputs.normalisation)["image normalisation"]
    assert (found.level, "divided by 65535" in found.advice) == ("error", True)


def test_nothing_normalised(build):
    cli = build()
    cli.model.normalize = lambda raw: raw.float()
    cli.model.make_target = lambda batch: batch["target"].float()
    found = verdicts(cli, inputs.normalisation, inputs.units)
    for role in ("image", "target"):
        assert found[f"{role} normalisation"].level == "error"
        assert "not normalised" in found[f"{role} normalisation"].advice
    assert found["units of predictions"].level == "error"


@pytest.mark.parametrize("role", ["image", "target"])
def test_statistics_of_the_other(build, role):
    cli = build(target_offset=5000)
    other = {"image": "target", "target": "image"}[role]
    wrong = Normalize(cli.datamodule.statistics[other], "mean_std")
    setattr(cli.model, {"image": "normalize_input", "target": "normalize_target"}[role], wrong)
    found = verdicts(cli, inputs.normalisation)[f"{role} normalisation"]
    assert (found.level, f"statistics of the {other}" in found.advice) == ("error", True)


def test_statistics_of_another_dataset_in_the_task(build):
    cli = build()
    other = [dict(channel, mean=9100.0, std=2000.0) for channel in cli.datamodule.statistics["image"]]
    cli.model.normalize_input = Normalize(other, "mean_std")
    assert verdicts(cli, inputs.normalisation)["image normalisation"].level == "error"


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_statistics_of_another_dataset_in_the_file(build, scale):
    cli = build(low=9000, high=12000)
    for channel in cli.datamodule.readers["train"].attributes["statistics"]["image"]:
        for name in ("min", "max", "mean", "std"):
            channel[name] *= scale
    assert verdicts(cli, data.statistics)["image statistics"].level == "error"


def test_statistics_are_compared_with_the_levels_of_all_images(build):
    """A mean that is a little off, inside the range."""
    cli = build()
    reader = cli.datamodule.readers["train"]
    arrays = np.stack([reader.read("image", i) for i in range(len(reader))]).astype(float)
    each = (arrays.min((2, 3)), arrays.max((2, 3)), arrays.mean((2, 3)), arrays.std((2, 3)), *np.zeros((4, 24, 1)))
    reader.image_statistics = {"image": np.stack(each, 2)}
    assert verdicts(cli, data.statistics)["image statistics"].level == "ok"
    reader.attributes["statistics"]["image"][0]["mean"] += 30
    assert verdicts(cli, data.statistics)["image statistics"].level == "error"


# 2. Ranges of prediction and target -----------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.Softplus()])
def test_bounded_output_for_an_unbounded_target(build, last):
    cli = build()
    cli.model.net = Wrapped(last)
    found = verdicts(cli, network.activation)["last activation"]
    assert (found.level, "lie outside" in found.advice) == ("error", True)


def test_bounded_output_that_fits_the_target_is_fine(build):
    cli = build("translation", "--model.init_args.target_normalization", "min_max")
    cli.model.net = Wrapped(nn.Sigmoid())
    assert verdicts(cli, network.activation)["last activation"].level == "ok"


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid(), nn.ReLU()])
def test_softmax_before_cross_entropy(build, last):
    cli = build("segmentation")
    cli.model.net = Wrapped(last, 2)
    found = verdicts(cli, network.activation)["last activation"]
    assert (found.level, "logits" in found.advice) == ("error", True)


def test_loss_of_probabilities_on_logits(build):
    cli = build("segmentation")
    cli.model.loss = nn.NLLLoss()
    assert verdicts(cli, network.activation)["last activation"].level == "error"
    cli.model.net = Wrapped(nn.LogSoftmax(1), 2)
    assert verdicts(cli, network.activation)["last activation"].level == "ok"


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


@pytest.mark.parametrize("factor", [1e4, 1e-5])
def test_prediction_and_target_in_different_ranges(build, factor):
    cli = build("translation", "--optimizer.init_args.lr", "1e-6")
    cli.model.net = Wrapped(Times(factor))
    assert verdicts(cli, network.one_batch)["prediction range"].level == "warning"


# 3. Alignment ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["translation", "segmentation"])
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a: a[..., ::-1], "left to right"),
        (lambda a: a[..., ::-1, :], "upside down"),
        (lambda a: np.rot90(a, 1, (-2, -1)), "rotated by 90"),
        (lambda a: np.roll(a, (9, -6), (-2, -1)), "shifted by +9 rows and -6 columns"),
    ],
)
def test_targets_that_do_not_lie_on_their_input(build, kind, change, word):
    cli = build(kind)
    corrupt(cli.datamodule.readers["train"], ROLES[kind][1], lambda whole, i: change(whole(i)))
    found = verdicts(cli, inputs.aligned)["alignment"]
    assert (found.level, word in found.measured) == ("error", True), found


@pytest.mark.parametrize("order", ["permuted", "slipped by one"])
def test_targets_of_other_samples(build, order):
    cli = build()
    other = np.random.default_rng(1).permutation(24) if order == "permuted" else (np.arange(24) + 1) % 24
    corrupt(cli.datamodule.readers["train"], "target", lambda whole, i: whole(int(other[i])))
    found = verdicts(cli, inputs.aligned)["alignment"]
    assert (found.level, "sample" in found.measured) == ("error", True), found


@pytest.mark.parametrize("seed", range(4))
def test_targets_that_have_nothing_to_do_with_the_pixels_give_no_alarm(build, seed):
    cli = build()
    rng = np.random.default_rng(seed)
    noise = rng.integers(9500, 12500, (24, 1, 64, 64)).astype(np.uint16)
    smooth = np.stack([np.kron(rng.integers(9500, 12500, (8, 8)), np.ones((8, 8))) for _ in range(24)])[:, None]
    for unrelated in (noise, smooth.astype(np.uint16)):
        corrupt(cli.datamodule.readers["train"], "target", lambda whole, i, u=unrelated: u[i])
        assert verdicts(cli, inputs.aligned)["alignment"].level == "ok"


@pytest.mark.parametrize("shift", [(1, 0), (-2, 1)])
def test_a_shift_as_optics_make_it_gives_no_alarm(build, shift):
    cli = build()
    corrupt(cli.datamodule.readers["train"], "target", lambda whole, i: np.roll(whole(i), shift, (-2, -1)))
    assert verdicts(cli, inputs.aligned)["alignment"].level == "ok"


class OnlyImage:
    """Flips the image and forgets the rest."""

    def __call__(self, arrays, seed):
        flip = np.random.default_rng(seed).random() < 0.5
        return {name: a[..., ::-1] if flip and name == "image" else a for name, a in arrays.items()}


@pytest.mark.parametrize("kind", ["translation", "segmentation"])
def test_augmentation_of_the_input_alone(build, kind):
    cli = build(kind)
    cli.datamodule.datasets["train"].augmentation = OnlyImage()
    found = verdicts(cli, sampling.geometry)["transforms"]
    assert (found.level, "not the same" in found.measured) == ("error", True)


class CutElsewhere(SplitDataset):
    """Cuts the target six rows and nine columns from where it cuts the image."""

    def __getitems__(self, keys):
        batch = super().__getitems__(keys)
        moved = np.roll(batch["target"].numpy(), (6, 9), (-2, -1))
        return batch | {"target": torch.from_numpy(moved)}


def test_crops_that_differ_between_input_and_target(build):
    cli = build()
    cli.datamodule.datasets["train"].__class__ = CutElsewhere
    found = verdicts(cli, inputs.aligned)["alignment"]
    assert (found.level, "in batches" in found.measured) == ("error", True), found


def test_images_whose_percentiles_coincide_are_counted(build):
    cli = build("translation", "--model.init_args.input_normalization", "image_percentile")
    sparse = np.full((1, 64, 64), 100, np.uint16)
    sparse[0, 0, :20] = 9000  # 0.5 % of the pixels
    found = cli.datamodule.reader("train").image_statistics["image"]
    found[3:5] = measure_image(sparse)
    found[5] = measure_image(np.full_like(sparse, 100))  # has no range at all, which is said elsewhere
    verdict = verdicts(cli, inputs.normalisation)["range of each image"]
    assert verdict.level == "warning"
    assert "equal in 2 of 24 images" in verdict.measured
    other = build("translation", "--model.init_args.input_normalization", "image_mean_std")
    other.datamodule.reader("train").image_statistics["image"][:] = measure_image(sparse)
    assert "range of each image" not in verdicts(other, inputs.normalisation)


@pytest.mark.parametrize("crop", ["24", "48"])
def test_crops_of_sparse_images_are_compared_with_such_crops(build, crop):
    """In most crops there is nothing to correlate, in the file as in the batches."""
    cli = build("translation", "--data.crop", crop)

    def sparse(whole, index):
        array = np.full_like(whole(index), 9600)
        array[..., :20, :20] = whole(index)[..., :20, :20]
        return array

    for role in ("image", "target"):
        corrupt(cli.datamodule.readers["train"], role, sparse)
    assert verdicts(cli, inputs.aligned)["alignment"].level == "ok"


class Interpolating:
    """Averages neighbours, of masks as well."""

    def __call__(self, arrays, seed):
        n = 1 + int(np.random.default_rng(seed).integers(3))
        return {
            k: ((a.astype(np.float32) + np.roll(a.astype(np.float32), n, -1)) / 2).astype(a.dtype)
            for k, a in arrays.items()
        }


def test_masks_interpolated_into_values_that_are_no_class(build):
    cli = build("segmentation")
    cli.datamodule.datasets["train"].augmentation = Interpolating()
    found = verdicts(cli, sampling.geometry)["transforms"]
    assert (found.level, "no class" in found.measured) == ("error", True)


# 4. Augmentation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"noise": 8.0}, {"offset": 6.0}, {"gain": 3.0}])
def test_intensity_augmentation_that_is_too_strong(build, options):
    cli = build()
    cli.model.intensity_augmentation = IntensityAugmentation(**({"gain": 0.0, "offset": 0.0, "noise": 0.0} | options))
    assert verdicts(cli, sampling.intensity)["intensity"].level == "warning"


def test_usual_intensity_augmentation_is_fine(build):
    cli = build()
    cli.model.intensity_augmentation = IntensityAugmentation()
    assert verdicts(cli, sampling.intensity)["intensity"].level == "ok"


class Clip(nn.Module):
    def forward(self, x):
        return x.clamp(0, 1)


class Blank(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


@pytest.mark.parametrize(("module", "level"), [(Clip(), "warning"), (Blank(), "error")])
def test_augmentation_that_clips_or_empties(build, module, level):
    cli = build()
    cli.model.intensity_augmentation = module
    assert verdicts(cli, sampling.intensity)["intensity"].level == level


TRANSFORMS = "--data.transforms"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Affine", {"translate_percent": [-0.9, 0.9], "border_mode": 4, "p": 1}),
        ("ElasticTransform", {"alpha": 3000, "sigma": 5, "border_mode": 4, "p": 1}),
        ("Affine", {"scale": [6, 8], "border_mode": 4, "p": 1}),
    ],
)
def test_geometric_augmentation_that_is_too_strong(build, name, arguments):
    transform = json.dumps([{"class_path": f"albumentations.{name}", "init_args": arguments}])
    cli = build("translation", TRANSFORMS, transform)
    assert verdicts(cli, sampling.geometry)["transforms"].level == "warning"


def test_usual_geometric_augmentation_is_fine(build):
    transforms = [
        {"class_path": "albumentations.D4", "init_args": {"p": 1}},
        {
            "class_path": "albumentations.Affine",
            "init_args": {"rotate": [-180, 180], "scale": [0.8, 1.25], "border_mode": 4, "p": 0.8},
        },
        {"class_path": "albumentations.ElasticTransform", "init_args": {"alpha": 50, "sigma": 8, "border_mode": 4}},
    ]
    cli = build("segmentation", TRANSFORMS, json.dumps(transforms))
    found = verdicts(cli, sampling.geometry, sampling.workers, sampling.crops)
    assert {v.level for v in found.values()} == {"ok"}


class OneDraw:
    """The same for all samples."""

    def __call__(self, arrays, seed):
        return {name: a[..., ::-1] for name, a in arrays.items()}


class NoEpoch:
    """The same in all epochs."""

    def __call__(self, arrays, seed):
        flip = seed.entropy[2] % 2
        return {name: a[..., ::-1] if flip else a for name, a in arrays.items()}


class Stream:
    """Draws from a stream of its own, which each process repeats."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, arrays, seed):
        flip = self.rng.random() < 0.5
        return {name: a[..., ::-1] if flip else a for name, a in arrays.items()}


@pytest.mark.parametrize(
    ("augmentation", "word"),
    [(OneDraw(), "moved alike"), (NoEpoch(), "same in every epoch"), (Stream(), "drawn again")],
)
def test_augmentation_that_is_not_drawn_for_each_sample_and_epoch(build, augmentation, word):
    cli = build()
    cli.datamodule.datasets["train"].augmentation = augmentation
    found = verdicts(cli, sampling.geometry)["transforms"]
    assert (found.level, word in found.measured) == ("error", True), found


def test_crops_that_are_the_same_in_every_epoch(build):
    cli = build("translation", TRANSFORMS, "null")
    dataset = cli.datamodule.datasets["train"]
    draw = type(dataset)._windows
    dataset._windows = lambda keys, images: draw(dataset, [(0, index) for _, index in keys], images)
    found = verdicts(cli, sampling.crops)["training samples"]
    assert (found.level, "every epoch" in found.measured) == ("error", True)


def test_augmentation_or_crops_in_validation(build):
    for change in ({"crop": 32}, {"augmentation": OneDraw()}):
        cli = build()
        vars(cli.datamodule.datasets["val"]).update(change)
        assert verdicts(cli, sampling.validation)["validation"].level == "error"


def test_dropout_that_stays_on_in_evaluation(build):
    class Always(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, training=True)

    cli = build()
    cli.model.net = Wrapped(Always())
    assert verdicts(cli, network.network)["network"].level == "warning"


def test_empty_crops(build):
    cli = build("segmentation")
    corrupt(cli.datamodule.readers["train"], "mask", lambda whole, i: whole(i) * (i == 0))
    found = verdicts(cli, sampling.crops)["training samples"]
    assert (found.level, "foreground_crops" in found.advice) == ("warning", True)
    corrupt(cli.datamodule.readers["train"], "image", lambda whole, i: whole(i) * (i % 2) + 1)
    assert "constant" in verdicts(cli, sampling.crops)["training samples"].measured


# 5. Order -------------------------------------------------------------------------------------------------------------


def in_order(cli, order, monkeypatch):
    def iterate(self):
        return iter([(self.epoch, int(i)) for i in order(self.epoch)])

    monkeypatch.setattr(ShuffledSampler, "__iter__", iterate)


def test_samples_in_the_order_of_the_file(build, monkeypatch):
    cli = build()
    in_order(cli, lambda epoch: range(24), monkeypatch)
    found = verdicts(cli, sampling.shuffling)["shuffling"]
    assert (found.level, "file" in found.measured) == ("error", True)


def test_the_same_order_in_every_epoch(build, monkeypatch):
    cli = build()
    in_order(cli, lambda epoch: np.random.default_rng(0).permutation(24), monkeypatch)
    assert verdicts(cli, sampling.shuffling)["shuffling"].level == "warning"


def test_samples_sorted_by_class(build, monkeypatch):
    cli = build("classification", n={"train": 90, "val": 9, "test": 3})
    labels = cli.datamodule.readers["train"].labels
    in_order(
        cli,
        lambda epoch: np.random.default_rng(epoch).permutation(90)[
            np.argsort(labels[np.random.default_rng(epoch).permutation(90)], kind="stable")
        ],
        monkeypatch,
    )
    found = verdicts(cli, sampling.shuffling)["shuffling"]
    assert (found.level, found.measured) == ("error", "sorted by class")


# 6. Splits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["ids", "groups"])
def test_one_sample_or_group_in_two_splits(build, what):
    cli = build()
    train, val = (getattr(cli.datamodule.readers[split], what) for split in ("train", "val"))
    val[3] = train[5]
    found = verdicts(cli, data.splits)["splits"]
    assert (found.level, "in train and val" in found.measured) == ("error", True)


def test_of_test_only_the_names_are_read(build, monkeypatch):
    cli = build()
    reader = data.SplitReader(cli.datamodule.folder / "test.h5")
    reader.ids[0] = cli.datamodule.readers["val"].ids[0]
    monkeypatch.setattr(reader, "fill", lambda *_: pytest.fail("the test split was read"))
    monkeypatch.setattr(data, "SplitReader", lambda path: reader)
    assert "val and test" in verdicts(cli, data.splits)["splits"].measured
    assert verdicts(cli, data.splits, kind="brief")["splits"].level == "ok"


@pytest.mark.parametrize(("noise", "level"), [(0, "error"), (60, "warning")])
def test_near_duplicates(build, noise, level):
    cli = build(shape=(96, 96))
    train, val = (cli.datamodule.readers[split] for split in ("train", "val"))
    rng = np.random.default_rng(0)

    def copied(whole, index):
        array = train.read("image", index).astype(float)
        return (array + noise * rng.standard_normal(array.shape)).astype(np.uint16)

    assert verdicts(cli, data.splits)["near-duplicates"].level == "ok"
    corrupt(val, "image", copied)
    assert verdicts(cli, data.splits)["near-duplicates"].level == level


# 7. Learning rate and gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "word"), [("30", "rises"), ("1e-9", "hardly falls")])
def test_learning_rate_too_high_or_too_low(build, rate, word):
    cli = build("translation", "--optimizer.init_args.lr", rate)
    found = verdicts(cli, network.learning_rate)["learning rate"]
    assert found.level in ("warning", "error")
    assert word in found.advice
    suggested = float(found.advice.rpartition("about ")[2])
    assert 1e-5 < suggested < 1


def test_rate_of_plain_gradient_descent_that_diverges(build):
    optimizer = ["--optimizer", "torch.optim.SGD", "--optimizer.init_args.lr", "500"]
    cli = build("translation", *optimizer)
    cli.model.net = nn.Conv2d(1, 1, 3, padding=1)
    found = verdicts(cli, network.learning_rate)["learning rate"]
    assert (found.level, "diverges" in found.advice) == ("error", True), found


class NaNLoss(nn.Module):
    def forward(self, output, target):
        return (output - target).sqrt().mean()


def test_loss_that_is_not_finite(build):
    cli = build()
    cli.model.loss = NaNLoss()
    found = verdicts(cli, network.first_loss, network.gradients)
    assert found["first loss"].level == found["gradients"].level == "error"


class Endless(nn.Module):
    def forward(self, output, target):
        return (output - output.detach()).abs().sqrt().mean() + 1


def test_gradient_that_is_not_finite(build):
    cli = build()
    cli.model.loss = Endless()
    assert verdicts(cli, network.gradients)["gradients"].level == "error"


def test_gradient_that_explodes(build):
    cli = build()
    cli.model.net = Wrapped(Times(1e6))
    found = verdicts(cli, network.gradients)["gradients"]
    assert (found.level, "exploding" in found.advice) == ("warning", True)


class CutOff(nn.Module):
    """A network of which a part is never used, or cut off from the loss."""

    def __init__(self, how):
        super().__init__()
        self.net, self.other, self.how = UNet(1, 1, 8, 1), nn.Conv2d(1, 64, 9), how

    def forward(self, x):
        if self.how == "unused":
            return self.net(x)
        if self.how == "zero":
            return self.net(x) + 0 * self.other(nn.functional.pad(x, (4, 4, 4, 4))).mean(1, keepdim=True)
        return 0 * self.net(x)


@pytest.mark.parametrize(
    ("how", "level", "word"),
    [("unused", "warning", "not used"), ("zero", "warning", "gradients of 0"), ("everything", "error", "everywhere")],
)
def test_gradients_that_are_missing_or_zero(build, how, level, word):
    cli = build()
    cli.model.net = CutOff(how)
    found = verdicts(cli, network.gradients)["gradients"]
    assert (found.level, word in found.measured) == (level, True), found


def test_weights_that_are_frozen(build):
    cli = build()
    for parameter in cli.model.net.down.parameters():
        parameter.requires_grad_(False)
    found = verdicts(cli, network.optimizer)["optimizer"]
    assert (found.level, "frozen" in found.measured) == ("warning", True)


def test_optimizer_without_some_weights(build):
    class Forgetful(type(build().model)):
        def parameter_groups(self, lr):
            return [{"params": list(self.net.head.parameters())}]

    cli = build()
    cli.model.__class__ = Forgetful
    assert verdicts(cli, network.optimizer)["optimizer"].level == "error"


# 8. and 9. One batch, first loss --------------------------------------------------------------------------------------


class Blind(nn.Module):
    """Does not look at its input."""

    def __init__(self, channels=1):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return self.value[None, :, None, None].expand(len(x), -1, *x.shape[-2:])


def test_a_network_that_cannot_learn_one_batch(build):
    cli = build("translation", "--optimizer.init_args.lr", "0.03")
    cli.model.net = Blind()
    found = verdicts(cli, network.one_batch)["one batch"]
    assert (found.level, "cannot learn" in found.advice) == ("error", True), found


@pytest.mark.parametrize(("factor", "level"), [(30.0, "warning"), (3000.0, "error")])
def test_first_loss_far_from_that_of_a_constant_answer(build, factor, level):
    cli = build("segmentation")
    cli.model.net = Wrapped(Times(factor), 2)
    assert verdicts(cli, network.first_loss)["first loss"].level == level


def test_first_loss_of_balanced_classes_is_the_logarithm_of_their_number(build):
    assert "ln 3 = 1.1" in verdicts(build("classification"), network.first_loss)["first loss"].measured


def test_first_loss_that_is_too_good(build):
    class Known(nn.Module):
        """Is told the answer by its input."""

        def forward(self, x):
            return torch.cat([-20 * x, 20 * x], 1)

    cli = build("segmentation")
    corrupt(cli.datamodule.readers["train"], "mask", lambda whole, i: (whole(i) > 0).astype(np.uint8))
    cli.model.normalize = lambda raw: (raw.float() > 10500).float() - 0.5
    cli.model.net = Known()
    assert verdicts(cli, network.first_loss)["first loss"].level == "warning"


# 10. Classes ----------------------------------------------------------------------------------------------------------


def test_values_of_a_mask_that_are_no_class(build):
    cli = build("segmentation")
    cli.datamodule.readers["train"].attributes["statistics"]["mask"]["7"] = 12
    found = verdicts(cli, data.classes)["mask"]
    assert (found.level, "7" in found.measured) == ("error", True)


def test_values_that_only_validation_has(build):
    cli = build("segmentation")
    corrupt(cli.datamodule.readers["val"], "mask", lambda whole, i: whole(i) + np.uint8(5))
    assert verdicts(cli, data.classes)["mask"].level == "error"


def test_ignore_index_that_is_a_class(build):
    cli = build("segmentation")
    for reader in cli.datamodule.readers.values():
        reader.attributes["ignore_index"] = 0
    found = verdicts(cli, data.classes)["mask"]
    assert (found.level, "ignore_index 0 is class dark" in found.measured) == ("warning", True)


def test_labels_out_of_range(build):
    cli = build("classification")
    cli.datamodule.readers["val"].labels[2] = 3
    assert verdicts(cli, data.classes)["labels"].level == "error"


@pytest.mark.parametrize(("split", "level"), [("train", "error"), ("val", "warning")])
def test_a_class_that_is_missing_from_a_split(build, split, level):
    cli = build("classification")
    labels = cli.datamodule.readers[split].labels
    labels[labels == 2] = 0
    assert verdicts(cli, data.classes)[f"classes in {split}"].level == level


@pytest.mark.parametrize(
    ("n_left", "stratify", "remedy"), [(1, False, "too few"), (4, False, "stratify: true"), (4, True, "split.seed")]
)
def test_the_remedy_for_a_missing_class_can_work(build, n_left, stratify, remedy):
    cli = build("classification")
    for split, reader in cli.datamodule.readers.items():
        reader.attributes["split"]["stratify"] = stratify
        reader.labels[reader.labels == 2] = 0
        reader.labels[: n_left * (split == "train")] = 2
    found = verdicts(cli, data.classes)["classes in val"]
    assert remedy in found.advice
    assert ("stratify: true" in found.advice) == (remedy == "stratify: true")


def test_imbalance_with_one_image_has_no_cure_by_repetition(build):
    cli = build("classification", n={"train": 60, "val": 9, "test": 3})
    labels = cli.datamodule.readers["train"].labels
    labels[:] = [1, 2, *[0] * 58]
    assert "balanced" not in verdicts(cli, data.classes)["class balance"].advice


def test_imbalance_without_a_cure(build):
    for cure, level in (("none", "warning"), ("perceptual", "warning"), ("balanced", "ok")):
        cli = build("classification", n={"train": 60, "val": 9, "test": 3})
        labels = cli.datamodule.readers["train"].labels
        labels[3:] = 0
        if cure == "balanced":
            cli.model.loss = CrossEntropy("balanced")
        elif cure == "perceptual":
            cli.model.loss.features = nn.Conv2d(1, 2, 3)  # its `weight` is no class weight
        found = verdicts(cli, data.classes)
        assert found["class balance" if level == "warning" else "labels"].level == level


def test_rare_class_of_pixels_without_a_cure(build):
    cli = build("segmentation")
    cli.datamodule.readers["train"].attributes["statistics"]["mask"] = {"0": 99_900, "1": 100}
    assert verdicts(cli, data.classes)["class balance"].level == "warning"
    cli.datamodule.foreground_crops = 0.5
    assert verdicts(cli, data.classes)["class balance"].level == "ok"


@pytest.mark.parametrize(("share", "level"), [(1.0, "error"), (0.5, "warning")])
def test_constant_targets(build, share, level):
    cli = build()
    corrupt(
        cli.datamodule.readers["train"], "target", lambda whole, i: whole(i) * 0 + 9600 if i < 24 * share else whole(i)
    )
    assert verdicts(cli, data.values)["target values"].level == level


# 11. Values and channels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["image", "target"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(build, role, value):
    cli = build(dtype=np.float32)

    def spoilt(whole, index):
        array = whole(index)
        array[0, 30, 30] = value if index == 3 else array[0, 30, 30]
        return array

    corrupt(cli.datamodule.readers["train"], role, spoilt)
    found = verdicts(cli, data.values)[f"{role} values"]
    assert (found.level, "1 of 32" in found.measured) == ("error", True)


def test_a_constant_channel(build):
    cli = build(channels=2)
    corrupt(
        cli.datamodule.readers["train"], "image", lambda whole, i: whole(i) * np.array([1, 0], np.uint16)[:, None, None]
    )
    found = verdicts(cli, data.values)["image values"]
    assert (found.level, "in1" in found.measured) == ("warning", True)


def test_channels_that_are_swapped_in_validation(build):
    cli = build(channels=2)
    tint = np.array([0, 4000], np.uint16)[:, None, None]
    corrupt(cli.datamodule.readers["train"], "image", lambda whole, i: whole(i) + tint)
    corrupt(cli.datamodule.readers["val"], "image", lambda whole, i: whole(i) + tint)
    assert verdicts(cli, data.channels)["image channels"].level == "ok"
    corrupt(cli.datamodule.readers["val"], "image", lambda whole, i: (whole(i) + tint)[::-1])
    assert verdicts(cli, data.channels)["image channels"].level == "error"


def test_channels_of_other_names(build):
    cli = build(channels=2)
    cli.datamodule.readers["val"].attributes["channels"] = {"image": ["in1", "in0"], "target": ["out0"]}
    assert verdicts(cli, data.channels)["image channels"].level == "error"


def test_a_network_for_another_number_of_channels(build):
    cli = build(channels=2)
    cli.model.net = UNet(3, 1, 8, 1)
    found = verdicts(cli, network.network)["network"]
    assert (found.level, "2 channels" in found.advice) == ("error", True)


# 12. Batches and validation -------------------------------------------------------------------------------------------


def test_batch_normalisation_of_one_sample(build):
    cli = build("translation", "--data.batch_size", "1")
    assert verdicts(cli, sampling.batches)["batches"].level == "warning"
    cli.model.net = nn.Conv2d(1, 1, 1)
    assert verdicts(cli, sampling.batches)["batches"].level == "ok"


def test_a_last_batch_of_one_sample(build, monkeypatch):
    cli = build("translation", "--data.batch_size", "23")
    loader = type(cli.datamodule).train_dataloader

    def keeps_the_last(self):
        found = loader(self)
        vars(found)["drop_last"] = False
        return found

    assert verdicts(cli, sampling.batches)["batches"].level == "ok"
    monkeypatch.setattr(type(cli.datamodule), "train_dataloader", keeps_the_last)
    assert verdicts(cli, sampling.batches)["batches"].level == "error"


def test_an_epoch_most_of_which_is_left_out(build):
    cli = build("translation", "--data.batch_size", "13", n={"train": 25, "val": 8, "test": 4})
    assert verdicts(cli, sampling.batches)["batches"].level == "ok"
    cli = build("translation", "--data.batch_size", "11", n={"train": 21, "val": 8, "test": 4})
    assert verdicts(cli, sampling.batches)["batches"].level == "ok"
    cli.datamodule.batch_size = 10
    cli.datamodule.crops_per_image = cli.datamodule.datasets["train"].crops_per_image = 1
    assert verdicts(cli, sampling.batches)["batches"].level == "ok"


def test_validation_smaller_than_stated(build):
    cli = build()
    cli.datamodule.readers["val"].attributes["split"]["n"]["val"] = 9
    found = verdicts(cli, sampling.validation)["validation"]
    assert (found.level, "9 stated" in found.measured) == ("error", True)


def test_validation_on_a_part_only(build):
    cli = build("translation", "--trainer.limit_val_batches", "0.5")
    assert verdicts(cli, sampling.validation)["validation"].level == "warning"


def test_validation_that_repeats_samples(build):
    cli = build()
    loader = cli.datamodule.eval_dataloader

    def twice(split):
        found = loader(split)
        found.batch_sampler.batches.append([(0, 0)])
        return found

    cli.datamodule.eval_dataloader = twice
    assert verdicts(cli, sampling.validation)["validation"].level == "error"


# 13. Machine ----------------------------------------------------------------------------------------------------------


def test_too_little_memory(build, monkeypatch):
    monkeypatch.setattr(batch.Attempt, "__call__", lambda self, n: batch.Trial(n, 0.01, 1e9 + n * 1e9))
    monkeypatch.setattr(batch, "_rss", lambda: 1e9)
    for free, level in ((3.5e9, "error"), (4.5e9, "warning"), (9e9, "ok")):
        monkeypatch.setattr(batch, "free_memory", lambda free=free: free)
        assert verdicts(build(), machine.cost)["memory"].level == level


def test_too_little_disk(build, monkeypatch):
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage(10_000))
    assert verdicts(build(), machine.cost)["disk"].level == "error"


def test_a_training_that_takes_weeks(build, monkeypatch):
    monkeypatch.setattr(batch.Attempt, "__call__", lambda self, n: batch.Trial(n, 3600.0, 1e8))
    cli = build("translation", "--trainer.max_epochs", "100")
    found = verdicts(cli, machine.cost)["time"]
    assert (found.level, "days for 100" in found.measured) == ("warning", True)
