"""Decisions of plans at their borders, on made-up fingerprints."""

from dataclasses import replace
from pydoc import locate
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from fingerprints import CLEAR, OBJECTS, fingerprint

from project.data.normalization import Levels, choose_input_normalization, choose_target_normalization
from project.errors import UserError
from project.models.classifier import EncoderClassifier
from project.models.encoder_files import EncoderFile
from project.models.pretrained import Pretrained, load_pretrained
from project.models.unet import UNet
from project.planning.appearance import Appearance
from project.planning.decisions import decide_all, possible_tasks
from project.planning.draft import receptive_field
from project.planning.fingerprint import Fingerprint
from project.planning.learning import TOUCHING
from project.planning.machine import Machine
from project.planning.sampling import RARE, SPARSE

NET, USUAL = "model.init_args.net", Machine()
D4, LEFT_RIGHT, UP_DOWN = (f"albumentations.{name}" for name in ("D4", "HorizontalFlip", "VerticalFlip"))


def decide(data: Fingerprint, minutes: float = 20, machine: Machine = USUAL) -> dict[str, Any]:
    """Key -> value of the plan for the first task."""
    choices = decide_all(data, machine, possible_tasks(data)[0], minutes)
    assert all(choice.reason or key == "data.dataset" for key, choice in choices.items())
    return {key: choice.value for key, choice in choices.items()}


# Tasks ----------------------------------------------------------------------------------------------------------------


def test_the_targets_decide_the_tasks():
    tasks = {"target": "translation", "mask": "segmentation", "label": "classification", "value": "regression"}
    for role, task in tasks.items():
        assert possible_tasks(fingerprint(role)) == [task]
        assert decide(fingerprint(role))["model.class_path"].endswith(f".{task.capitalize()}Task")
    data = fingerprint("mask", roles=("image", "mask", "target", "value"), targets=Levels())
    assert possible_tasks(data) == ["translation", "segmentation", "regression"]
    for roles in (("image",), ("image", "label")):  # a single class teaches nothing
        assert possible_tasks(fingerprint("label", roles=roles, labels={"only": 9})) == ["pretraining"]


def test_without_validation_images_there_is_no_plan():
    with pytest.raises(UserError, match="no validation images"):
        possible_tasks(fingerprint(n_val=0))


# Single decisions -----------------------------------------------------------------------------------------------------


def masks(**shares):
    return fingerprint("mask", mask=shares)


def labels(*counts, **changes):
    return fingerprint("label", labels=dict(zip("ab", counts, strict=True)), **changes)


def asymmetric(*shares):
    return fingerprint(appearance=replace(CLEAR, asymmetry=shares))


UNKNOWN = Appearance(n_independent=3)
BALANCED = {"class_path": "project.losses.CrossEntropy", "init_args": {"class_weights": "balanced"}}


@pytest.mark.parametrize(
    ("key", "data", "value"),
    [
        # Small images are taken whole; so are images of labels, unless sizes differ.
        ("data.crop", fingerprint(), 128),
        ("data.crop", fingerprint(size=(160, 160)), None),
        ("data.crop", fingerprint(size=(160, 150)), 144),
        ("data.crop", fingerprint(size=(161, 400)), 128),
        ("data.crop", fingerprint(size=(9, 9)), None),
        ("data.crop", fingerprint("label", sizes={(90, 80): 50, (100, 120): 50}), 80),
        # Few images give small batches.
        ("data.batch_size", fingerprint(), 16),
        ("data.batch_size", fingerprint(n=3, size=(64, 64)), 2),
        ("data.batch_size", fingerprint(n=1, size=(16, 16)), 2),
        ("data.batch_size", fingerprint(n=3), 8),
        ("data.batch_size", fingerprint(n=9, size=(8192, 8192)), 16),
        ("data.fold", fingerprint(n_folds=5), 0),
        # Sparse foreground, and rare classes, are sampled more often.
        ("data.foreground_crops", masks(background=0.99 - SPARSE, cell=SPARSE + 0.01), None),
        ("data.foreground_crops", masks(background=1.01 - SPARSE, cell=SPARSE - 0.01), 0.9),
        ("data.foreground_crops", masks(background=0.5, cell=0.5 - RARE / 2, rare=RARE / 2), 0.5),
        ("data.foreground_crops", masks(background=1.0, cell=0.0), None),
        ("data.foreground_crops", fingerprint("mask", mask={"background": 0.99, "a": 0.01}, size=(96, 96)), None),
        # Rare labels are balanced; several labels per image are weighted instead.
        ("data.balanced", labels(30, 10), True),
        ("data.balanced", labels(0, 0), None),
        ("data.balanced", labels(29, 10), None),
        ("data.balanced", labels(99, 1), None),
        ("data.balanced", labels(9, 0), None),
        ("data.balanced", labels(30, 10, multi_label=True), None),
        ("model.init_args.loss", labels(30, 10, multi_label=True), BALANCED),
        ("model.init_args.loss", labels(0, 0, multi_label=True), "project.losses.CrossEntropy"),
        ("model.init_args.loss", fingerprint(targets=Levels(tail=5.0)), "torch.nn.SmoothL1Loss"),
        ("model.init_args.loss", fingerprint(targets=Levels(tail=2.0)), "torch.nn.MSELoss"),
        # Touching objects are separated.
        ("model.init_args.objects", fingerprint("mask", objects=replace(OBJECTS, touching=TOUCHING / 2)), "components"),
        ("model.init_args.objects", fingerprint("mask", objects=replace(OBJECTS, touching=TOUCHING)), "depth"),
        ("model.init_args.objects", fingerprint("mask"), None),
        # Few validation images are judged by the loss.
        ("checkpoint", fingerprint("mask", objects=OBJECTS), {"monitor": "val/object_ap", "mode": "max"}),
        ("checkpoint", fingerprint("label", n_val=49), {"monitor": "val/loss", "mode": "min"}),
        ("checkpoint", fingerprint("label", n_val=50), {"monitor": "val/balanced_accuracy", "mode": "max"}),
    ],
)
def test_a_decision_follows_from_the_data(key, data, value):
    assert decide(data).get(key) == value


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (asymmetric(0.0, 0.0, 0.0), [D4]),
        (asymmetric(0.0, 0.0, 0.5), [LEFT_RIGHT, UP_DOWN]),
        (asymmetric(0.0, 0.5, 0.0), [LEFT_RIGHT]),
        (asymmetric(0.5, 0.5, 0.0), []),
        (fingerprint("label", size=(100, 80)), [LEFT_RIGHT, UP_DOWN]),
        (fingerprint(appearance=UNKNOWN), [D4]),
        (fingerprint(appearance=UNKNOWN, n_channels=3, dtype="uint8"), [LEFT_RIGHT]),  # photographs
    ],
)
def test_only_symmetries_of_the_data_augment(data, names):
    assert [transform["class_path"] for transform in decide(data)["data.transforms"] or []] == names


@pytest.mark.parametrize("levels", [Levels(), Levels(apart=9.0), Levels(apart=9.0, informs=0.9), Levels(tail=9.0)])
def test_normalization_follows_from_the_levels(levels):
    values = decide(fingerprint(inputs=levels, targets=levels))
    assert values["model.init_args.input_normalization"] == choose_input_normalization(levels).value
    assert values["model.init_args.target_normalization"] == choose_target_normalization(levels).value


@pytest.mark.parametrize(("apart", "informs", "is_on"), [(0.5, 0.0, True), (0.2, 0.0, False), (0.5, 0.3, False)])
def test_brightness_is_augmented_where_it_differs_and_means_nothing(apart, informs, is_on):
    values = decide(fingerprint(inputs=Levels(apart=apart, informs=informs)))
    assert bool(values["model.init_args.intensity_augmentation"]) is is_on


def test_reasons_agree_about_brightness():
    choices = decide_all(fingerprint("label", inputs=Levels(apart=1.2, informs=0.1)), USUAL, "classification", 20)
    for key in ("input_normalization", "intensity_augmentation"):
        reason = choices[f"model.init_args.{key}"].reason
        assert "brightness differs by 1.2 standard deviations" in reason
        assert "explains at most 10 %" in reason


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "depth"), [(5, 2), (20, 3), (30, 3), (60, 4), (500, 5)])
def test_the_network_sees_several_structures(size, depth):
    data = fingerprint(size=(2048, 2048), appearance=replace(CLEAR, structure=size))
    values = decide(data)
    assert values[NET]["init_args"]["depth"] == depth
    assert receptive_field(depth) >= 3 * size or depth == 5
    assert values["data.crop"] >= min(2.5 * size, 512)
    assert values["data.crop"] % 2**depth == 0


@pytest.mark.parametrize("skip", ["concat", "add"])
def test_the_receptive_field_is_that_of_the_network(skip):
    net, image = UNet(1, 1, 2, 2, skip=skip).eval(), torch.rand(1, 1, 96, 96, requires_grad=True)
    for parameter in net.parameters():
        parameter.data.abs_()  # nothing is cut off by a ReLU
    net(image)[0, 0, 48, 48].backward()
    columns = image.grad[0, 0].abs().sum(0).nonzero()
    assert abs(int(columns.max() - columns.min()) + 1 - receptive_field(2)) <= 4


@pytest.fixture
def weights(tmp_path):
    """A file of pretrained weights."""
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "test_efficientnet.pth")
    return EncoderFile("tu-test_efficientnet", tmp_path / "test_efficientnet.pth")


@pytest.mark.parametrize(("seconds", "apart", "planned"), [(1.0, 9.0, True), (20.0, 9.0, False), (1.0, 1.0, False)])
def test_a_pretrained_encoder_is_planned_for_images_of_several_kinds_if_it_is_fast(weights, seconds, apart, planned):
    machine = Machine(bf16_speed=2.0, encoder=weights, encoder_seconds=seconds)
    values = decide(fingerprint("mask", inputs=Levels(apart=apart)), 3, machine)
    assert values[NET]["class_path"].endswith(".Unet" if planned else ".UNet")
    assert values.get("model.init_args.pretrained") == (weights.pretrained() if planned else None)
    assert (values["model.init_args.input_normalization"] == "image_mean_std") is planned
    assert ("trainer.precision" in values) is not planned
    if planned:
        assert smp.Unet(**values[NET]["init_args"])(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_several_kinds_of_image_to_segment_take_instance_norm():
    for role, apart in (("mask", 9.0), ("mask", 1.0), ("target", 9.0)):
        norm = decide(fingerprint(role, inputs=Levels(apart=apart)))[NET]["init_args"].get("norm")
        assert (norm == "instance") is (role == "mask" and apart > 4)


@pytest.mark.parametrize(
    ("side", "structure", "depth", "divisor"),
    [(8, 20, 3, None), (6, 20, 3, 8), (28, 60, 3, None), (512, 20, 3, None), (512, 40, 4, None), (512, 300, 5, None)],
)
def test_the_encoder_halves_until_features_are_half_a_structure(side, structure, depth, divisor):
    appearance = replace(CLEAR, structure=structure)
    values = decide(fingerprint("label", size=(side, side), appearance=appearance))
    assert values[NET]["init_args"]["depth"] == depth
    assert values.get("model.init_args.size_divisor") == divisor


@pytest.mark.parametrize("role", ["label", "value"])
@pytest.mark.parametrize(("side", "planned"), [(128, True), (28, False)])
def test_a_pretrained_encoder_is_planned_for_labels_of_images_that_are_not_small(weights, role, side, planned):
    machine = Machine(bf16_speed=2.0, encoder=weights)
    appearance = replace(CLEAR, structure=10)  # three halvings, and one more
    values = decide(fingerprint(role, size=(side, side), inputs=Levels(apart=9.0), appearance=appearance), 20, machine)
    net = EncoderClassifier(**values[NET]["init_args"])
    assert net.depth == (4 if planned else 3)
    assert (values[NET]["init_args"]["encoder_name"] == "tu-test_efficientnet") is planned
    assert (values["model.init_args.input_normalization"] == "image_mean_std") is planned
    if planned:
        assert "loaded" in load_pretrained(net, Pretrained(**values["model.init_args.pretrained"]))[-1]


# Machine and time -----------------------------------------------------------------------------------------------------


def test_a_faster_machine_changes_only_what_depends_on_time():
    slow, fast = (Machine(seconds={8: s, 16: 2 * s, 32: 4 * s}) for s in (50.0, 0.01))
    plans = [decide(fingerprint(), machine=machine) for machine in (slow, fast)]
    assert [plan[NET]["init_args"]["width"] for plan in plans] == [8, 32]
    differing = {key for key in plans[0].keys() | plans[1].keys() if plans[0].get(key) != plans[1].get(key)}
    assert differing <= {NET, "data.crops_per_image", "data.batch_size", "optimizer.init_args"}
    assert decide(fingerprint(), machine=Machine(bf16_speed=2.0))["trainer.precision"] == "bf16-mixed"
    assert "trainer.precision" not in plans[0]


def test_little_time_gives_smaller_batches_and_few_images_more_crops_per_epoch():
    plans = [decide(fingerprint(), minutes) for minutes in (100, 3, 0.1)]
    assert [plan["data.batch_size"] for plan in plans] == [16, 8, 4]
    assert [plan["length.minutes"] for plan in plans] == [100, 3, 0.1]
    plans = [decide(fingerprint("label", size=(128, 128)), minutes) for minutes in (100, 0.1)]
    assert [plan["data.batch_size"] for plan in plans] == [16, 8]
    assert decide(fingerprint(n=3))["data.crops_per_image"] > 50
    assert "data.crops_per_image" not in decide(fingerprint(n=100_000))


@pytest.mark.parametrize("role", ["target", "mask", "label"])
@pytest.mark.parametrize("apart", [0.0, 9.0])
def test_what_is_decided_for_the_model_are_arguments_of_the_task(role, apart):
    from jsonargparse import ArgumentParser

    values = decide(fingerprint(role, inputs=Levels(apart=apart)))
    added = ArgumentParser().add_class_arguments(locate(values["model.class_path"]), "model.init_args")
    assert {key for key in values if key.startswith("model.init_args.")} <= {*added}
