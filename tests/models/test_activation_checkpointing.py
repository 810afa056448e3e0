"""Activations that are computed again: the same loss, gradients and statistics, with less memory."""

import copy
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from project.cli import main
from project.errors import UserError
from project.models.activation_checkpointing import checkpoint_activations
from project.models.unet import UNet


def smp_net(name, encoder="resnet18", **options):
    return getattr(smp, name)(encoder, encoder_weights=None, in_channels=1, classes=2, **options)


NETS = {
    "UNet": (lambda: UNet(width=4, depth=2), 5),
    "smp.Unet": (lambda: smp_net("Unet"), 8 + 5),
    "smp.FPN": (lambda: smp_net("FPN", decoder_dropout=0.5), None),
    "smp.Unet, mobilenet": (lambda: smp_net("Unet", "mobilenet_v2"), None),
    "timm resnet": (lambda: timm.create_model("test_resnet", in_chans=1, num_classes=2), None),
    "timm vit": (lambda: timm.create_model("test_vit", in_chans=1, num_classes=2, img_size=64, drop_rate=0.3), None),
}


def one_step(net):
    """Loss, gradients and buffers after one training step, and the bytes kept for the backward pass."""
    kept = []

    def keep(tensor):
        kept.append(tensor.untyped_storage().data_ptr() and tensor.untyped_storage().nbytes())
        return tensor

    x = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)  # of dropout
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = net.train()(x).square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return loss.detach(), gradients, dict(net.named_buffers()), sum(kept)


@pytest.mark.parametrize("name", NETS)
def test_loss_gradients_and_statistics_are_the_same(name):
    make, count = NETS[name]
    torch.manual_seed(0)
    plain = make()
    net = copy.deepcopy(plain)
    blocks = checkpoint_activations(net)
    assert blocks == count or (count is None and blocks > 1)
    assert list(net.state_dict()) == list(plain.state_dict())
    (loss, gradients, buffers, bytes_), (loss2, gradients2, buffers2, bytes2) = one_step(plain), one_step(net)
    assert torch.equal(loss, loss2)
    for one, two in ((gradients, gradients2), (buffers, buffers2)):
        assert one.keys() == two.keys()
        for key in one:
            assert (one[key] is None and two[key] is None) or torch.equal(one[key], two[key]), key
    assert bytes2 < 0.75 * bytes_


def test_statistics_are_updated_once_and_tracked_afterwards():
    net = UNet(width=4, depth=1)
    checkpoint_activations(net)
    for _ in range(3):
        one_step(net)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [int(m.num_batches_tracked) for m in norms] == [3] * len(norms)
    assert {m.momentum for m in norms} == {0.1}


def test_frozen_blocks_stay_as_they_are():
    net = UNet(width=4, depth=1)
    checkpoint_activations(net)
    net.train()
    norm = net.up[0][1].eval()
    before = norm.running_mean.clone()
    net(torch.randn(2, 1, 8, 8)).sum().backward()
    assert torch.equal(norm.running_mean, before)


def test_a_copy_computes_with_its_own_weights():
    net = UNet(width=4, depth=1)
    checkpoint_activations(net)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert twin(torch.randn(2, 1, 8, 8)).abs().max() == 0
    twin(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(p.grad is None for p in net.parameters())


def test_a_network_without_blocks_is_told():
    with pytest.raises(UserError, match="Conv2d has no blocks"):
        checkpoint_activations(nn.Conv2d(1, 1, 3))


@pytest.mark.slow
def test_one_line_of_an_experiment_turns_it_on(tmp_path, monkeypatch, write_tiny, capsys):
    (tmp_path / "configs").symlink_to(Path(__file__).parents[2] / "configs")
    write_tiny(tmp_path / "data/processed/yeast", shape=(32, 32))
    monkeypatch.chdir(tmp_path)
    words = ["train", "unet_mse", "--logger", "none", "--data.crop", "32", "--data.batch_size", "4"]
    words += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--model.init_args.intensity", "null"]
    weights = []
    for on in ("false", "true"):
        assert main([*words, "--model.init_args.checkpoint_activations", on]) == 0
        weights.append(torch.load("runs/unet_mse/latest/checkpoints/best.ckpt", weights_only=True)["state_dict"])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert main([*words, "--model.init_args.checkpoint_activations=true", "--model.init_args.compile=true"]) == 2
    assert "do not go together" in capsys.readouterr().err
