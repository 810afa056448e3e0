import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from jsonargparse import ArgumentParser
from torch import nn

from project.errors import UserError
from project.models.classifier import EncoderClassifier, TimmClassifier
from project.models.finetuning import Finetuning, backbone
from project.models.pretrained import input_statistics


def test_it_is_the_mean_of_the_last_features_and_a_linear_layer():
    net = EncoderClassifier("tu-test_efficientnet", in_channels=2, classes=3, dropout=0.9).eval()
    x = torch.rand(4, 2, 64, 32)
    features = net.encoder(x)[-1]
    assert features.shape[2:] == (2, 1)
    expected = features.mean((2, 3)) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(x), expected)
    assert net(x).shape == (4, 3)
    net.dropout.train()
    assert not torch.allclose(net(x), expected)


@pytest.mark.parametrize(
    ("encoder", "depth"), [("resnet18", 5), ("mobilenet_v2", 5), ("tu-test_resnet", 5), ("tu-test_convnext", 4)]
)
def test_small_images_work(encoder, depth):
    net = EncoderClassifier(encoder, in_channels=1, classes=10, depth=depth).eval()
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", ["timm-mobilenetv3_small_100", "timm-regnetx_002"])
def test_the_names_that_smp_takes_give_the_encoder_that_it_gives(name):
    with pytest.warns(DeprecationWarning, match="timm-"):
        unet = smp.Unet(name, encoder_weights=None, in_channels=1)
    net = EncoderClassifier(name, in_channels=1)
    net.encoder.load_state_dict(unet.encoder.state_dict())
    assert net.head.in_features == unet.encoder.out_channels[-1]


def test_the_head_can_have_a_hidden_layer():
    net = EncoderClassifier("tu-test_resnet", classes=3, hidden=7).eval()
    assert [tuple(p.shape) for p in net.head.parameters()] == [(7, 96), (7,), (3, 7), (3,)]
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(net(x), net.head(net.encoder(x)[-1].mean((2, 3))))


def test_images_that_are_too_small_are_told():
    net = EncoderClassifier("tu-test_convnext").eval()
    with pytest.raises(UserError, match=r"28 x 30 pixels are too small(.|\n)*size_divisor: 32 (.|\n)*depth: 4"):
        net(torch.rand(2, 1, 28, 30))
    # Another failure is not explained away.
    with pytest.raises(RuntimeError, match="channels"):
        net(torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_name": "resnet81"}, r'no encoder "resnet81".*"resnet'),
        ({"encoder_name": "tu-test_resnett"}, r'no model "test_resnett".*"tu-test_resnet"'),
        ({"encoder_name": "test_resnet"}, r'no encoder "test_resnet".*"tu-test_resnet"'),
        ({"encoder_name": "resnet18", "encoder_weights": "imagenett"}, r'no weights "imagenett"(.|\n)*- imagenet'),
        ({"encoder_name": "tu-test_vit"}, r"not possible: Unsupported"),
        ({"encoder_name": "resnet18", "depth": 7}, r"depth of 7 is not possible"),
    ],
)
def test_mistakes_are_told(options, message):
    with pytest.raises(UserError, match=message):
        EncoderClassifier(**options)


def test_false_downloads_nothing():
    # smp itself takes it for True.
    assert EncoderClassifier("tu-test_resnet", encoder_weights=False).encoder.out_channels[-1] == 96


def test_a_failed_download_is_not_taken_for_a_mistake(monkeypatch):
    # Some versions of huggingface_hub raise a ValueError then.
    failed = ValueError("cannot find the requested files")
    failed.__cause__ = ConnectionError("no route")

    def get_encoder(*arguments):
        raise failed

    monkeypatch.setattr("project.models.classifier.get_encoder", get_encoder)
    with pytest.raises(ValueError, match="requested files") as error:
        EncoderClassifier("resnet18", encoder_weights="imagenet")
    assert error.value is failed


def test_a_model_of_timm():
    net = TimmClassifier("test_resnet", in_channels=2, classes=4, drop_rate=0.3)
    assert net(torch.rand(2, 2, 32, 32)).shape == (2, 4)
    assert net.model.drop_rate == 0.3
    assert TimmClassifier("test_resnet.r160_in1k").model.num_classes == 2


def test_a_model_of_timm_is_known_for_what_it_is():
    net = TimmClassifier("test_resnet", classes=3)
    head = {"model.fc.weight", "model.fc.bias"}
    assert set(backbone(net)[1]) == {name for name, _ in net.named_parameters()} - head
    groups = Finetuning(decay=0.5).groups(net, 1.0)
    assert len(groups) > 3
    assert groups[-1]["name"] == "head"
    assert [p.shape for p in groups[-1]["params"]] == [(3, net.model.fc.in_features), (3,)]
    frozen = Finetuning(freeze_epochs=-1)
    frozen.apply(net, 0)
    net.train()
    frozen.train_mode(net)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == head
    assert not net.model.bn1.training
    mean, std = net.model.pretrained_cfg["mean"], net.model.pretrained_cfg["std"]
    assert input_statistics(net) == (list(mean), list(std))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "test_resnett"}, r'no model "test_resnett".*"test_resnet"'),
        ({"name": "test_resnet.in1k"}, r'no weights "in1k"(.|\n)*- test_resnet\.r160_in1k'),
        ({"name": "vit_base_patch32_plus_256", "pretrained": True}, r"no pretrained weights(.|\n)*pretrained: false"),
    ],
)
def test_mistakes_in_names_of_timm_are_told(options, message):
    with pytest.raises(UserError, match=message):
        TimmClassifier(**options)


def parsed(class_path, init_args):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--net", type=nn.Module)
    settings = parser.parse_object({"net": {"class_path": class_path, "init_args": init_args}})
    return parser.instantiate_classes(settings).net


def test_both_can_stand_in_an_experiment_file():
    net = parsed("project.models.classifier.TimmClassifier", {"name": "test_resnet", "in_channels": 1, "classes": 3})
    assert isinstance(net.model, timm.models.ResNet)
    assert net.model.fc.out_features == 3
    net = parsed("project.models.classifier.EncoderClassifier", {"encoder_name": "tu-test_resnet", "classes": 3})
    assert isinstance(net, EncoderClassifier)
    with pytest.raises(Exception, match="'classe' is not accepted"):
        parsed("project.models.classifier.TimmClassifier", {"name": "test_resnet", "classe": 3})
