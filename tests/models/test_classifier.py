import pytest
import torch

from project.errors import UserError
from project.models.classifier import EncoderClassifier, TimmClassifier


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


def test_images_that_are_too_small_are_reported():
    net = EncoderClassifier("tu-test_convnext").eval()
    with pytest.raises(UserError, match=r"28 x 30 pixels are too small(.|\n)*size_divisor: 32 (.|\n)*depth: 4"):
        net(torch.rand(2, 1, 28, 30))
    # Another failure is not explained away.
    with pytest.raises(RuntimeError, match="channels"):
        net(torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_name": "resnet81"}, r'no network "resnet81".*"resnet'),
        ({"encoder_name": "tu-test_resnett"}, r'no network "tu-test_resnett".*"tu-test_resnet"'),
        ({"encoder_name": "test_resnet"}, r'no network "test_resnet".*"tu-test_resnet"'),
        ({"encoder_name": "resnet18", "encoder_weights": "imagenett"}, r"imagenett(.|\n)*'imagenet'"),
        ({"encoder_name": "tu-test_vit"}, r"cannot be built: "),
        ({"encoder_name": "resnet18", "depth": 7}, r"depth"),
    ],
)
def test_mistakes_are_reported(options, message):
    with pytest.raises(UserError, match=message):
        EncoderClassifier(**options)


def test_a_model_of_timm():
    net = TimmClassifier("test_resnet", in_channels=2, classes=4, drop_rate=0.3)
    assert net(torch.rand(2, 2, 32, 32)).shape == (2, 4)
    assert net.model.drop_rate == 0.3
    assert TimmClassifier("test_resnet.r160_in1k").model.num_classes == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "test_resnett"}, r'no network "test_resnett".*"test_resnet"'),
        ({"name": "test_resnet.in1k"}, "in1k"),
        ({"name": "vit_base_patch32_plus_256", "pretrained": True}, "(?i)no pretrained weights"),
    ],
)
def test_mistakes_in_names_of_timm_are_reported(options, message):
    with pytest.raises(UserError, match=message):
        TimmClassifier(**options)
