import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from project.errors import UserError
from project.models.classifier import EncoderClassifier
from project.models.finetuning import Finetuning, backbone
from project.models.unet import UNet


def of_timm(name="test_resnet", **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, in_chans=1, **options)


def of_smp(name="tu-test_efficientnet"):
    torch.manual_seed(0)
    return EncoderClassifier(name, classes=3)


def step(net, optimizer):
    optimizer.zero_grad()
    net(torch.randn(4, 1, 32, 32)).square().mean().backward()
    optimizer.step()


def inside(net, frozen=True):
    """Copies of what the backbone consists of, statistics of its normalisations as well."""
    head = ("fc.", "head.", "classifier.")
    return {k: v.clone() for k, v in net.state_dict().items() if k.startswith(head) != frozen}


def changed(before, after):
    return [name for name in before if not torch.equal(before[name], after[name])]


# Freezing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "optimizer"), [(of_timm, torch.optim.AdamW), (of_smp, torch.optim.SGD)])
def test_a_frozen_backbone_is_bit_equal_after_steps_and_moves_when_unfrozen(make, optimizer):
    net, finetuning = make(), Finetuning(freeze_epochs=2, rate=0.5)
    # Decay would show in weights that must not move.
    optimizer = optimizer(finetuning.groups(net, 0.1), weight_decay=0.5)
    before, head = inside(net), inside(net, frozen=False)
    for epoch in (0, 1):
        finetuning.apply(net, epoch)
        net.train()
        finetuning.train_mode(net)
        assert finetuning.frozen
        assert net.training
        step(net, optimizer)
        step(net, optimizer)
    assert changed(before, inside(net)) == []
    assert len(changed(head, inside(net, frozen=False))) == 2
    finetuning.apply(net, 2)
    net.train()
    finetuning.train_mode(net)
    assert not finetuning.frozen
    for _ in range(3):  # the last normalisation of each block begins as 0, and passes no gradient on
        step(net, optimizer)
    moved = changed(before, inside(net))
    parameters = {name for name, _ in net.named_parameters()} & set(before)
    assert parameters <= set(moved)
    assert any("running_mean" in name for name in moved)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_the_dropout_of_the_head_stays_active_over_a_frozen_backbone(name):
    net, finetuning = of_timm(name, drop_rate=0.5, **({"img_size": 32} if "vit" in name else {})), Finetuning(-1)
    finetuning.apply(net, 0)
    net.train()
    finetuning.train_mode(net)
    training = {key for key, module in net.named_modules() if key and module.training}
    assert training >= {"test_vit": {"head_drop", "head"}, "test_convnext": {"head.drop", "head.fc"}}[name]
    assert not any(isinstance(net.get_submodule(key), nn.LayerNorm | nn.Conv2d) for key in training)


def test_a_network_without_a_head_cannot_be_frozen():
    net = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(UserError, match="nothing is left to train"):
        Finetuning(freeze_epochs=1).apply(net, 0)
    assert all(p.requires_grad for p in net.parameters())


# Rates ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet"])
@pytest.mark.parametrize("frozen", [False, True])
def test_groups_hold_each_parameter_once(name, frozen):
    for net in [of_timm(name), *([of_smp(f"tu-{name}")] if name != "test_vit" else [])]:
        finetuning = Finetuning(freeze_epochs=1, decay=0.5)
        if frozen:
            finetuning.apply(net, 0)
        held = [id(p) for group in finetuning.groups(net, 0.1) for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in net.parameters())
        assert len(set(held)) == len(held)


def rates(net, finetuning, lr=1.0):
    names = {id(p): name for name, p in net.named_parameters()}
    return {names[id(p)]: g["lr"] for g in finetuning.groups(net, lr) for p in g["params"]}


def test_stages_have_the_promised_rates():
    expected = {"conv1": 5, "bn1": 5, "layer1": 4, "layer2": 3, "layer3": 2, "layer4": 1}
    for net, start in ((of_timm(), ""), (of_smp("tu-test_resnet"), "encoder.model.")):
        found = rates(net, Finetuning(rate=0.1, decay=0.5), lr=0.2)
        for name, rate in found.items():
            stage = name.removeprefix(start).split(".")[0]
            wanted = 0.2 * 0.1 * 0.5 ** expected[stage] if stage in expected else 0.2
            assert rate == pytest.approx(wanted), name
        groups = Finetuning(rate=0.1, decay=0.5).groups(net, 0.2)
        assert [g["name"] for g in groups] == [*(f"backbone.{i}" for i in range(5)), "head"]
        assert [g["lr"] for g in groups] == sorted(g["lr"] for g in groups)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_the_rates_of_transformers_are_those_of_timm(name, monkeypatch):
    net = of_timm(name)
    if name == "test_convnext":  # timm counts single blocks there
        matcher = net.group_matcher
        monkeypatch.setattr(net, "group_matcher", lambda coarse=False: matcher(coarse=True))
    names = {id(p): key for key, p in net.named_parameters()}
    reference = {
        names[id(p)]: group["lr_scale"]
        for group in param_groups_layer_decay(net, layer_decay=0.7)
        for p in group["params"]
    }
    assert rates(net, Finetuning(decay=0.7)) == pytest.approx(reference)


def test_blocks_in_one_list_are_stages_of_their_own():
    found = rates(of_smp(), Finetuning(decay=0.5))
    assert found["encoder.model.conv_stem.weight"] == found["encoder.model.bn1.bias"] == 0.5**6
    assert {found[f"encoder.model.blocks.{i}.0.bn1.weight"] for i in range(5)} == {0.5**n for n in range(1, 6)}


# Which part -----------------------------------------------------------------------------------------------------------


def test_the_backbone_is_found():
    assert all(key.startswith("encoder.") for key in backbone(of_smp()))
    parameters = backbone(of_timm())
    assert "layer4.0.conv1.weight" in parameters
    assert not any(key.startswith("fc") for key in parameters)
    assert {key.split(".")[0] for key in backbone(of_timm(), "layer1")} == {"layer1"}


def test_mistakes_are_reported():
    with pytest.raises(UserError, match=r"UNet has no `encoder`(.|\n)*- down"):
        backbone(UNet())
    with pytest.raises(UserError, match=r'no part "encodr".*"encoder"'):
        Finetuning(part="encodr").groups(of_smp(), 0.1)
    for wrong in ({"freeze_epochs": -2}, {"rate": 0.0}, {"rate": float("nan")}, {"decay": 0.0}, {"decay": 1.5}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Finetuning(**wrong)
