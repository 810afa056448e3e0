import copy
import re

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from project.errors import UserError
from project.models.classifier import EncoderClassifier
from project.models.pretrained import IMAGENET, Pretrained, input_statistics, load_pretrained


def classifier(channels=3, seed=0, name="test_resnet", classes=5):
    torch.manual_seed(seed)
    return timm.create_model(name, in_chans=channels, num_classes=classes).eval()


def unet(channels=3, seed=0):
    torch.manual_seed(seed)
    return smp.Unet(
        "tu-test_efficientnet", encoder_weights=None, in_channels=channels, decoder_channels=(8, 8, 8, 8, 4)
    ).eval()


IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def save(tmp_path):
    def save(content, name="weights.pth"):
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return save


# The file -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {}},
        lambda s: {k: v for k, v in s.items() if "num_batches_tracked" not in k},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
    ],
    ids=["plain", "state_dict", "model", "without counters", "DataParallel", "compiled"],
)
def test_a_round_trip_gives_the_same_outputs(save, wrapped):
    source, net = classifier(), classifier(seed=1)
    assert not torch.allclose(net(IMAGE), source(IMAGE))
    messages = load_pretrained(net, Pretrained(save(wrapped(source.state_dict()))))
    assert torch.equal(net(IMAGE), source(IMAGE))
    assert re.match(r"loaded \d+ tensors from ", messages[-1])


def test_safetensors_are_read_and_damaged_ones_reported(tmp_path):
    source, net = classifier(), classifier(seed=1)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_pretrained(net, Pretrained(str(tmp_path / "w.safetensors")))
    assert torch.equal(net(IMAGE), source(IMAGE))
    (tmp_path / "w.safetensors").write_text("<html>")
    with pytest.raises(UserError, match="damaged"):
        load_pretrained(net, Pretrained(str(tmp_path / "w.safetensors")))


def checkpoint(net):
    """As Lightning writes it for a task: the net under its name, beside the loss and the normalisation."""
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    tensors |= {"normalize.offset": torch.zeros(1), "loss.weight": torch.ones(1)}
    return {"pytorch-lightning_version": "2.6.4", "state_dict": tensors, "epoch": 3}


def test_the_encoder_of_a_run_goes_into_the_encoder_of_another_network(tmp_path):
    source, target = unet(), EncoderClassifier("tu-test_efficientnet", in_channels=3).eval()
    (tmp_path / "checkpoints").mkdir()
    torch.save(checkpoint(source), tmp_path / "checkpoints" / "best.ckpt")
    torch.save(checkpoint(unet(seed=6)), tmp_path / "checkpoints" / "last.ckpt")
    spec = Pretrained(str(tmp_path), part="encoder", source="encoder")
    load_pretrained(target, spec)
    for ours, theirs in zip(target.encoder(IMAGE), source.encoder(IMAGE), strict=True):
        assert torch.equal(ours, theirs)
    # What the run records as its best.
    other = unet(seed=5)
    torch.save(checkpoint(other), tmp_path / "checkpoints" / "4.ckpt")
    (tmp_path / "provenance.json").write_text('{"best": {"checkpoint": "4.ckpt"}}')
    load_pretrained(target, spec)
    assert torch.equal(target.encoder(IMAGE)[-1], other.encoder(IMAGE)[-1])


def test_mistaken_names_of_files_and_parts_are_reported_with_the_nearest(tmp_path, save):
    file = save(classifier().state_dict(), "resnet.pth")
    with pytest.raises(UserError, match=r'there is no file.*Did you mean "resnet\.pth"'):
        load_pretrained(classifier(), Pretrained(str(tmp_path / "resnett.pth")))
    with pytest.raises(UserError, match="no checkpoints/"):
        load_pretrained(classifier(), Pretrained(str(tmp_path)))
    with pytest.raises(UserError, match=r'no part "encodr".*"encoder"'):
        load_pretrained(unet(), Pretrained(file, part="encodr"))
    with pytest.raises(UserError, match=r'no source "layr1".*"layer1"'):
        load_pretrained(classifier(), Pretrained(file, source="layr1"))
    with pytest.raises(UserError, match=r'anything called "fcc".*"fc"'):
        load_pretrained(classifier(), Pretrained(file, skip=["fcc"]))


# Strictness -----------------------------------------------------------------------------------------------------------


def test_what_is_missing_or_left_over_is_refused_unless_it_is_skipped(save):
    source, net = classifier(), classifier(seed=1)
    tensors = source.state_dict()
    before = copy.deepcopy(net.state_dict())
    less = save({k: v for k, v in tensors.items() if not k.startswith("fc")}, "less.pth")
    more = save(tensors | {"fc2.weight": torch.ones(1)}, "more.pth")
    with pytest.raises(UserError, match=r"2 tensors of the network are not in the file(.|\n)*fc\.bias(.|\n)*\[fc\]"):
        load_pretrained(net, Pretrained(less))
    with pytest.raises(UserError, match=r"1 tensors of the file are not in the network(.|\n)*skip: \[fc2\]"):
        load_pretrained(net, Pretrained(more))
    # "fc" is not "fc2".
    with pytest.raises(UserError, match="fc2"):
        load_pretrained(net, Pretrained(more, skip=["fc"]))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    messages = load_pretrained(net, Pretrained(less, skip=["fc"]))
    assert messages[-1].endswith("skipped: fc")
    assert torch.equal(net.forward_features(IMAGE), source.forward_features(IMAGE))
    assert torch.equal(net.fc.weight, before["fc.weight"])
    net = classifier(seed=1)
    messages = load_pretrained(net, Pretrained(more, skip=["fc2"]))
    assert messages[-1].endswith("skipped: fc2")
    assert torch.equal(net(IMAGE), source(IMAGE))


def test_another_shape_is_refused_and_nothing_is_changed(save):
    net = classifier(classes=7)
    before = copy.deepcopy(net.state_dict())
    file = save(classifier(seed=1, classes=5).state_dict())
    with pytest.raises(UserError, match=r"fc\.weight: \(5, 96\) in the file, \(7, 96\) here(.|\n)*skip: \[fc\]"):
        load_pretrained(net, Pretrained(file))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    load_pretrained(net, Pretrained(file, skip=["fc"]))


def test_hints_say_which_part_or_source_was_meant(save):
    net = unet()
    with pytest.raises(UserError, match=r"Did you mean  source: encoder"):
        load_pretrained(net, Pretrained(save(net.state_dict()), part="encoder"))
    with pytest.raises(UserError, match=r"Did you mean  part: encoder"):
        load_pretrained(net, Pretrained(save(net.encoder.state_dict())))


# Another number of input channels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 4), (3, 6)])
def test_the_first_convolution_is_adapted(save, old, new):
    source, net = classifier(old), classifier(new, seed=1)
    messages = load_pretrained(net, Pretrained(save(source.state_dict())))
    assert messages[0] == f"conv1.0.weight: adapted from {old} to {new} channels"
    assert len(messages) == 2
    grey = IMAGE[:, :1]
    ours, theirs = net(grey.repeat(1, new, 1, 1)), source(grey.repeat(1, old, 1, 1))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_all_branches_that_see_the_image_are_adapted(save):
    source, net = classifier(3, name="repvgg_a0"), classifier(1, 1, name="repvgg_a0")
    messages = load_pretrained(net, Pretrained(save(source.state_dict())))
    assert len(messages) == 3
    grey = IMAGE[:, :1]
    torch.testing.assert_close(net(grey), source(grey.repeat(1, 3, 1, 1)), rtol=1e-3, atol=1e-4)


# What the weights expect ----------------------------------------------------------------------------------------------


def test_input_statistics_come_from_where_the_encoder_does():
    half = [0.5, 0.5, 0.5]
    assert input_statistics(classifier()) == (half, half)
    assert input_statistics(EncoderClassifier("tu-test_resnet")) == (half, half)
    assert input_statistics(unet()) == IMAGENET
    assert input_statistics(EncoderClassifier("resnet18")) == IMAGENET
    assert input_statistics(nn.Conv2d(1, 1, 1)) == IMAGENET
    net = nn.Identity()
    net.name = "u-xception"
    assert input_statistics(net) == (half, half)
    net.name = "unetplusplus-dpn68"
    assert input_statistics(net)[0] == pytest.approx([124 / 255, 117 / 255, 104 / 255], abs=1e-6)
