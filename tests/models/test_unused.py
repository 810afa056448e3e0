import segmentation_models_pytorch as smp
import torch

from project.models.classifier import EncoderClassifier
from project.models.pretrained import Pretrained, load_pretrained
from project.models.unused import drop_unused


def without_gradient(net, x):
    net(x).sum().backward()
    return [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]


def n_parameters(net):
    return sum(p.numel() for p in net.parameters())


def test_a_classifier_holds_only_the_stages_that_it_uses():
    net = EncoderClassifier("resnet18", in_channels=1, classes=3, depth=4)
    assert n_parameters(net) == 2_777_283
    assert without_gradient(net, torch.rand(2, 1, 32, 32)) == []
    assert n_parameters(EncoderClassifier("resnet18", in_channels=1, classes=3)) == 11_171_779


def test_what_cannot_be_removed_is_frozen():
    """Branches of an HRNet are joined, used or not."""
    net = EncoderClassifier("tu-hrnet_w18_small", classes=3)
    assert net.encoder.dropped_stages == []
    frozen = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    assert frozen == 390_976
    assert without_gradient(net, torch.rand(2, 1, 64, 64)) == []


def test_features_are_the_same_without_the_unused_stages():
    torch.manual_seed(0)
    for name in ("mobilenet_v2", "vgg11", "tu-efficientnet_b0"):  # these run a stage more than they give
        net = smp.Unet(name, encoder_depth=3, encoder_weights=None, decoder_channels=(8, 8, 4)).eval()
        x, before = torch.rand(1, 3, 64, 64), n_parameters(net)
        expected = net(x)
        drop_unused(net)
        assert torch.equal(net(x), expected)
        assert n_parameters(net) < before
        assert without_gradient(net, x) == []


def test_building_draws_no_random_numbers_and_keeps_batch_statistics():
    torch.manual_seed(0)
    net = smp.Unet("resnet18", encoder_depth=3, encoder_weights=None, decoder_channels=(8, 8, 4))
    drawn, statistics = torch.random.get_rng_state(), net.encoder.bn1.running_mean.clone()
    drop_unused(net)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert torch.equal(net.encoder.bn1.running_mean, statistics)
    assert all(module.training for module in net.modules())
    drop_unused(net)
    assert net.encoder.dropped_stages == ["layer3", "layer4"]


def test_weights_of_a_deeper_encoder_can_be_loaded(tmp_path):
    whole = EncoderClassifier("resnet18", depth=5)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    net = EncoderClassifier("resnet18", depth=4)
    spec = Pretrained(str(tmp_path / "whole.pth"), part="encoder", source="encoder")
    assert "not used by this network: layer4" in load_pretrained(net, spec)
    assert torch.equal(net.encoder.layer3[0].conv1.weight, whole.encoder.layer3[0].conv1.weight)
