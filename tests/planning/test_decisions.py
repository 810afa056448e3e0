"""Decisions of plans at their borders, on made-up fingerprints."""

from dataclasses import replace
from pydoc import locate
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from fingerprints import CLEAR, OBJECTS, fingerprint

from project.data.normalization import Levels, choose_input_normalization, choose_target_normalization
from project.errors import UserError
from project.models.encoder_files import EncoderFile
from project.planning.appearance import Appearance
from project.planning.decisions import decide_all, possible_tasks
from project.planning.draft import receptive_field
from project.planning.fingerprint import Fingerprint
from project.planning.learning import TOUCHING
from project.planning.machine import Machine
from project.planning.sampling import RARE, SPARSE

NET, USUAL = "model.init_args.net", Machine()


def decide(data: Fingerprint, minutes: float = 20, machine: Machine = USUAL) -> dict[str, Any]:
    """Key -> value of the plan for the first task."""
    choices = decide_all(data, machine, possible_tasks(data)[0], minutes)
    assert all(choice.reason or key == "data.dataset" for key, choice in choices.items())
    return {key: choice.value for key, choice in choices.items()}


@pytest.mark.parametrize(
    ("role", "task"),
    [("target", "Translation"), ("mask", "Segmentation"), ("label", "Classification"), ("value", "Regression")],
)
def test_the_targets_decide_the_task(role, task):
    assert decide(fingerprint(role))["model.class_path"].endswith(f".{task}Task")


def test_images_without_targets_are_for_pretraining():
    data = fingerprint("instances")
    assert possible_tasks(replace(data, roles=("image",))) == ["pretraining"]
    assert possible_tasks(replace(data, roles=("image", "label"), labels={"only": 9})) == ["pretraining"]


def test_several_targets_give_several_tasks():
    data = fingerprint("mask", roles=("image", "mask", "target", "value"), targets=Levels())
    assert possible_tasks(data) == ["translation", "segmentation", "regression"]


def test_without_validation_images_there_is_no_plan():
    with pytest.raises(UserError, match="no validation images"):
        possible_tasks(fingerprint(n_val=0))


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
    from project.models.unet import UNet

    net, image = UNet(1, 1, 2, 2, skip=skip).eval(), torch.rand(1, 1, 96, 96, requires_grad=True)
    for parameter in net.parameters():
        parameter.data.abs_()  # nothing is cut off by a ReLU
    net(image)[0, 0, 48, 48].backward()
    columns = image.grad[0, 0].abs().sum(0).nonzero()
    assert abs(int(columns.max() - columns.min()) + 1 - receptive_field(2)) <= 4


@pytest.mark.parametrize(("seconds", "apart", "planned"), [(1.0, 9.0, True), (20.0, 9.0, False), (1.0, 1.0, False)])
def test_a_pretrained_encoder_is_planned_for_images_of_several_kinds_if_it_is_fast(seconds, apart, planned):
    weights = EncoderFile("tu-test_resnet", {"file": "data/pretrained/test_resnet.pth", "part": "encoder.model"})
    machine = Machine(bf16_speed=2.0, encoder=weights, encoder_seconds=seconds)
    values = decide(fingerprint("mask", inputs=Levels(apart=apart)), 3, machine)
    assert values[NET]["class_path"].endswith(".Unet" if planned else ".UNet")
    assert values.get("model.init_args.pretrained") == (weights.pretrained if planned else None)
    assert (values["model.init_args.input_normalization"] == "image_mean_std") is planned
    assert ("trainer.precision" in values) is not planned
    if planned:
        assert smp.Unet(**values[NET]["init_args"])(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_several_kinds_of_image_to_segment_take_instance_norm():
    for role, apart in (("mask", 9.0), ("mask", 1.0), ("target", 9.0)):
        norm = decide(fingerprint(role, inputs=Levels(apart=apart)))[NET]["init_args"].get("norm")
        assert (norm == "instance") is (role == "mask" and apart > 4)


@pytest.mark.parametrize(
    ("size", "crop"), [((512, 512), 128), ((160, 160), None), ((160, 150), 144), ((161, 400), 128), ((9, 9), None)]
)
def test_small_images_are_taken_whole(size, crop):
    assert decide(fingerprint(size=size))["data.crop"] == crop


def test_whole_images_of_labels_unless_sizes_differ():
    assert "data.crop" not in decide(fingerprint("label"))
    assert decide(fingerprint("label", sizes={(90, 80): 50, (100, 120): 50}))["data.crop"] == 80


@pytest.mark.parametrize(("n", "size", "batch"), [(100, 512, 16), (3, 64, 2), (1, 16, 2), (3, 512, 8), (9, 8192, 16)])
def test_few_images_give_small_batches(n, size, batch):
    assert decide(fingerprint(n=n, size=(size, size)))["data.batch_size"] == batch


def test_few_images_give_more_crops_per_epoch():
    assert decide(fingerprint(n=3))["data.crops_per_image"] > 50
    assert "data.crops_per_image" not in decide(fingerprint(n=100_000))


def test_a_faster_machine_changes_only_what_depends_on_time():
    slow, fast = (Machine(seconds={8: s, 16: 2 * s, 32: 4 * s}) for s in (50.0, 0.01))
    plans = [decide(fingerprint(), machine=machine) for machine in (slow, fast)]
    assert [plan[NET]["init_args"]["width"] for plan in plans] == [8, 32]
    differing = {key for key in plans[0].keys() | plans[1].keys() if plans[0].get(key) != plans[1].get(key)}
    assert differing <= {NET, "data.crops_per_image", "data.batch_size", "optimizer.init_args"}


def test_little_time_gives_smaller_batches():
    plans = [decide(fingerprint(), minutes) for minutes in (100, 3, 0.1)]
    assert [plan["data.batch_size"] for plan in plans] == [16, 8, 4]
    plans = [decide(fingerprint("label", size=(128, 128)), minutes) for minutes in (100, 0.1)]
    assert [plan["data.batch_size"] for plan in plans] == [16, 8]


def test_mixed_precision_where_it_is_faster():
    assert decide(fingerprint(), machine=Machine(bf16_speed=2.0))["trainer.precision"] == "bf16-mixed"
    assert "trainer.precision" not in decide(fingerprint())


@pytest.mark.parametrize(("touching", "method"), [(TOUCHING / 2, "components"), (TOUCHING, "depth")])
def test_objects_that_touch_are_separated(touching, method):
    values = decide(fingerprint("mask", objects=replace(OBJECTS, touching=touching)))
    assert values["model.init_args.objects"] == method
    assert values["checkpoint"]["monitor"] == "val/object_ap"
    assert "model.init_args.objects" not in decide(fingerprint("mask"))


@pytest.mark.parametrize(
    ("shares", "share"),
    [
        ({"background": 0.99 - SPARSE, "cell": SPARSE + 0.01}, None),
        ({"background": 1.01 - SPARSE, "cell": SPARSE - 0.01}, 0.9),
        ({"background": 0.5, "cell": 0.5 - RARE / 2, "rare": RARE / 2}, 0.5),
        ({"background": 1.0, "cell": 0.0}, None),
    ],
)
def test_sparse_foreground_is_sampled_more_often(shares, share):
    assert decide(fingerprint("mask", mask=shares)).get("data.foreground_crops") == share
    assert "data.foreground_crops" not in decide(fingerprint("mask", mask=shares, size=(96, 96)))


@pytest.mark.parametrize(
    ("counts", "is_balanced"), [((30, 10), True), ((0, 0), None), ((29, 10), None), ((99, 1), None), ((9, 0), None)]
)
def test_rare_labels_are_balanced(counts, is_balanced):
    labels = dict(zip("ab", counts, strict=True))
    assert decide(fingerprint("label", labels=labels)).get("data.balanced") == is_balanced


def test_several_labels_per_image_are_weighted_instead():
    values = decide(fingerprint("label", labels={"a": 30, "b": 10}, multi_label=True))
    assert "data.balanced" not in values
    assert values["model.init_args.loss"]["init_args"] == {"class_weights": "balanced"}
    values = decide(fingerprint("label", labels={"a": 0, "b": 0}, multi_label=True))
    assert values["model.init_args.loss"] == "project.losses.CrossEntropy"


@pytest.mark.parametrize(
    ("asymmetry", "names"),
    [
        ((0.0, 0.0, 0.0), ["D4"]),
        ((0.0, 0.0, 0.5), ["HorizontalFlip", "VerticalFlip"]),
        ((0.0, 0.5, 0.0), ["HorizontalFlip"]),
        ((0.5, 0.5, 0.0), []),
    ],
)
def test_only_symmetries_of_the_data_augment(asymmetry, names):
    data = fingerprint(appearance=replace(CLEAR, asymmetry=asymmetry))
    assert [t["class_path"].rpartition(".")[2] for t in decide(data)["data.transforms"] or []] == names


def test_few_color_photographs_are_only_mirrored():
    unknown = Appearance(n_independent=3)
    color = fingerprint(appearance=unknown, n_channels=3, dtype="uint8")
    assert [t["class_path"] for t in decide(color)["data.transforms"]] == ["albumentations.HorizontalFlip"]
    assert decide(fingerprint(appearance=unknown))["data.transforms"][0]["class_path"] == "albumentations.D4"


def test_images_that_are_not_square_are_not_turned():
    names = [t["class_path"] for t in decide(fingerprint("label", size=(100, 80)))["data.transforms"]]
    assert names == ["albumentations.HorizontalFlip", "albumentations.VerticalFlip"]


@pytest.mark.parametrize("levels", [Levels(), Levels(apart=9.0), Levels(apart=9.0, informs=0.9), Levels(tail=9.0)])
def test_normalization_follows_from_the_levels(levels):
    values = decide(fingerprint(inputs=levels, targets=levels))
    assert values["model.init_args.input_normalization"] == choose_input_normalization(levels).value
    assert values["model.init_args.target_normalization"] == choose_target_normalization(levels).value


@pytest.mark.parametrize(("apart", "informs", "is_on"), [(0.5, 0.0, True), (0.2, 0.0, False), (0.5, 0.3, False)])
def test_brightness_is_augmented_where_it_differs_and_means_nothing(apart, informs, is_on):
    values = decide(fingerprint(inputs=Levels(apart=apart, informs=informs)))
    assert bool(values["model.init_args.intensity_augmentation"]) is is_on


def test_a_heavy_tail_of_the_targets_does_not_decide_the_loss():
    assert decide(fingerprint(targets=Levels(tail=5.0)))["model.init_args.loss"] == "torch.nn.SmoothL1Loss"
    assert decide(fingerprint(targets=Levels(tail=2.0)))["model.init_args.loss"] == "torch.nn.MSELoss"


@pytest.mark.parametrize(("side", "depth", "divisor"), [(8, 3, None), (6, 3, 8), (28, 3, None), (512, 4, None)])
def test_the_encoder_halves_until_structures_are_features(side, depth, divisor):
    values = decide(fingerprint("label", size=(side, side)))
    assert values[NET]["init_args"]["depth"] == depth
    assert values.get("model.init_args.size_divisor") == divisor


def test_few_validation_images_are_judged_by_the_loss():
    assert decide(fingerprint("label", n_val=49))["checkpoint"]["monitor"] == "val/loss"
    assert decide(fingerprint("label", n_val=50))["checkpoint"] == {"monitor": "val/balanced_accuracy", "mode": "max"}


def test_dataset_time_and_fold_are_those_of_the_data():
    values = decide(fingerprint(n_folds=5), minutes=7)
    assert (values["data.dataset"], values["data.fold"], values["length.minutes"]) == (fingerprint().dataset, 0, 7)
    assert "data.fold" not in decide(fingerprint())


@pytest.mark.parametrize("role", ["target", "mask", "label"])
@pytest.mark.parametrize("apart", [0.0, 9.0])
def test_what_is_decided_for_the_model_are_arguments_of_the_task(role, apart):
    from jsonargparse import ArgumentParser

    values = decide(fingerprint(role, inputs=Levels(apart=apart)))
    added = ArgumentParser().add_class_arguments(locate(values["model.class_path"]), "model.init_args")
    assert {key for key in values if key.startswith("model.init_args.")} <= {*added}
