"""What follows from the data: channels and classes of any network, and crops; what is typed wins."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from shipped_configs import CONFIGS
from torch import Tensor, nn

from project.errors import UserError
from project.training.lightning_cli import temporary_experiment

ROLES = ("image", "target", "mask", "instances")
DATA = {"shape": (40, 56), "channels": 3, "target_channels": 2, "roles": ROLES, "n_labels": 7, "n_values": 2}
NET = "--model.init_args.net"


class Required(nn.Module):
    """As a user writes it: nothing has a default, and a width has the name of other people's inputs."""

    def __init__(self, in_chans: int, n_classes: int, num_channels: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_chans, num_channels, 1), nn.Conv2d(num_channels, n_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        return self.layers(x)


class Parts(nn.Module):
    """An encoder whose width is a decision, and a head."""

    def __init__(self, encoder: nn.Module, classes: int, width: int = 4) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        return self.head(self.encoder(x))


def content(name: str, root: Path) -> dict[str, Any]:
    """A shipped experiment on the only dataset below a folder."""
    settings = yaml.safe_load((CONFIGS / f"experiments/{name}.yaml").read_text())
    settings["data"] |= {"dataset": "set0", "root": str(root / "processed")}
    settings["trainer"] = {"accelerator": "cpu", "max_epochs": 1}
    return settings


SMP = {
    "class_path": "segmentation_models_pytorch.Unet",
    "init_args": {"encoder_name": "tu-test_resnet", "encoder_weights": None},
}
CLASSIFIER = {"class_path": "project.models.classifier.TimmClassifier", "init_args": {"name": "test_resnet"}}
OURS = {"class_path": "project.models.unet.UNet", "init_args": {"width": 4, "depth": 1}}
HERE = f"{__name__}."
PARTS = {"class_path": HERE + "Parts", "init_args": {"encoder": OURS | {"init_args": {"out_channels": 4}}}}


@pytest.mark.parametrize("tiny_dataset", [DATA], indirect=True)
@pytest.mark.parametrize(
    ("experiment", "net", "outputs"),
    [
        ("unet_mse", OURS, 2),
        ("unet_depth", OURS, 3),
        ("unet_dice", SMP, 2),
        ("unet_masked", OURS, 3),
        ("resnet_ce", "torchvision.models.resnet18", 7),
        ("resnet_count", CLASSIFIER, 2),
        ("unet_dice", HERE + "Required", 2),
        ("unet_dice", PARTS, 2),
    ],
)
def test_channels_and_classes_follow_from_the_data(tiny_dataset, tmp_path, experiment, net, outputs):
    words = [NET, net if isinstance(net, str) else json.dumps(net)]
    with temporary_experiment(experiment, content(experiment, tmp_path), words) as cli:
        image = cli.datamodule.datasets["train"][0, 0]["image"].float()
        if net != "torchvision.models.resnet18":  # which cannot take other images than RGB
            assert image.shape[1] == 3
        assert cli.model.eval().apply_net(image).shape[1] == outputs


class OneHotLoss(nn.Module):
    """As a user writes it."""

    ignore_index = -100

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes


@pytest.mark.parametrize("tiny_dataset", [DATA], indirect=True)
@pytest.mark.parametrize(("words", "number"), [([], 2), (["--model.init_args.loss.num_classes", "5"], 5)])
def test_the_number_of_classes_of_a_loss_follows_from_the_data(tiny_dataset, tmp_path, words, number):
    words = [NET, json.dumps(SMP), "--model.init_args.loss", HERE + "OneHotLoss", *words]
    with temporary_experiment("unet_dice", content("unet_dice", tmp_path), words) as cli:
        assert cli.model.loss.num_classes == number


@pytest.mark.parametrize("tiny_dataset", [DATA], indirect=True)
def test_everything_that_contradicts_the_data_is_in_one_message(tiny_dataset, tmp_path):
    settings = content("unet_mse", tmp_path)
    settings["model"]["init_args"]["net"]["init_args"] = {"in_channels": 1}
    words = [f"{NET}.out_channels", "5", "--data.crop", "64", "--data.crops_per_image", "1", "--data.batch_size", "20"]
    with pytest.raises(UserError) as error, temporary_experiment("unet_mse", settings, words):
        pass
    for part in ("in_channels is 1", "have 3", "out_channels is 5", "write 32", "an epoch has 12 samples"):
        assert part in str(error.value)


def test_a_batch_many_times_as_large_as_the_data_is_refused(tiny_dataset, tmp_path):
    with pytest.raises(UserError, match=r"batch_size is 241, .* the 12 training images have: write at most 240"):
        temporary_experiment("unet_mse", content("unet_mse", tmp_path), ["--data.batch_size", "241"]).__enter__()
    words = ["--data.batch_size", "241", "--data.crops_per_image", "21"]
    with temporary_experiment("unet_mse", content("unet_mse", tmp_path), words) as cli:
        assert cli.datamodule.batch_size == 241


@pytest.mark.parametrize(
    ("tiny_dataset", "words", "crop", "n_samples"),
    [
        ({"shape": (40, 40)}, [], 32, 72),  # 40 is no multiple of 32; 72 samples are 4 steps of 16
        ({"shape": (28, 28)}, [], 28, 72),
        ({"shape": (28, 28)}, ["--data.crop", "20"], 20, 72),
        ({"shape": (200, 300), "n": {"train": 30, "val": 2, "test": 1}}, [], 128, 120),
        ({"shape": (40, 40)}, ["--data.crops_per_image", "3", "--data.batch_size", "8"], 32, 36),
        ({"sizes": {"train": [(40, 70)] * 11 + [(50, 66)]}}, ["--data.crop", "32"], 32, 72),
    ],
    indirect=["tiny_dataset"],
)
def test_crops_fit_the_images_and_give_some_steps(tiny_dataset, tmp_path, words, crop, n_samples):
    with temporary_experiment("unet_mse", content("unet_mse", tmp_path), words) as cli:
        assert cli.datamodule.crop == crop
        assert len(cli.datamodule.datasets["train"]) == n_samples
        assert cli.config.data.crop == crop
        assert cli.config.data.crops_per_image * 12 == n_samples or n_samples == 120


@pytest.mark.parametrize(
    "tiny_dataset", [{"sizes": {"train": [(40, 70)] * 11 + [(50, 66)]}, "n_labels": 2}], indirect=True
)
def test_images_of_different_sizes_are_cropped(tiny_dataset, tmp_path):
    with temporary_experiment("resnet_ce", content("resnet_ce", tmp_path), []) as cli:
        assert cli.datamodule.crop == 40


@pytest.mark.parametrize("tiny_dataset", [{}], indirect=True)
@pytest.mark.parametrize("net", ["builtins.dict", "nothing.Net"])
def test_what_is_no_network_is_left_to_the_parser(tiny_dataset, tmp_path, net):
    with (
        pytest.raises(UserError, match=r"model\.net"),
        temporary_experiment("unet_mse", content("unet_mse", tmp_path), [NET, net]),
    ):
        pass
