import logging

import numpy as np
import pytest
import skimage.metrics
import sklearn.utils.class_weight
import torch
from segmentation_models_pytorch import losses as smp
from torch import nn
from torch.nn import functional

from project.errors import UserError
from project.losses import CrossEntropy, SSIMLoss, WeightedSum, fit_to_data
from project.metrics.image import image_scores

K = 3
CLASS_LOSSES = {
    "cross entropy": CrossEntropy,
    "weighted cross entropy": lambda: CrossEntropy([0.5, 1.0, 4.0], 0.1),
    "torch": nn.CrossEntropyLoss,
    "dice": lambda: smp.DiceLoss("multiclass"),
    "jaccard": lambda: smp.JaccardLoss("multiclass"),
    "tversky": lambda: smp.TverskyLoss("multiclass", alpha=0.3, beta=0.7),
    "lovasz": lambda: smp.LovaszLoss("multiclass"),
    "focal": lambda: smp.FocalLoss("multiclass"),
    "sum": lambda: WeightedSum([CrossEntropy(), smp.DiceLoss("multiclass")], [1, 2]),
}
every_class_loss = pytest.mark.parametrize("make", CLASS_LOSSES.values(), ids=CLASS_LOSSES)


def images(shape=(3, 2, 31, 27), seed=0):
    """Prediction and target that are alike, as normalised by mean and standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(shape, generator=generator)
    return 0.7 * target + 0.5 * torch.randn(shape, generator=generator) + 0.1, target


def maps(shape=(2, 16, 17), seed=0):
    """Logits (B, K, H, W) and classes (B, H, W), or (B, K) and (B,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape[0], K, *shape[1:], generator=generator)
    return logits, torch.randint(0, K, shape, generator=generator)


def value_and_gradient(loss, output, target):
    output = output.clone().requires_grad_()
    value = loss(output, target)
    assert value.shape == ()
    assert value.dtype == torch.float32
    (gradient,) = torch.autograd.grad(value, output)
    return value.detach(), gradient


def assert_finite(loss, output, target):
    value, gradient = value_and_gradient(loss, output, target)
    assert value.isfinite()
    assert gradient.isfinite().all()
    return value, gradient


# All losses -----------------------------------------------------------------------------------------------------------


def test_our_losses_compute_bfloat16_in_float32():
    (logits, classes), loss = maps(), CrossEntropy([0.5, 1, 4])
    assert torch.equal(loss(logits.bfloat16(), classes), loss(logits.bfloat16().float(), classes))
    labels = functional.one_hot(classes, K).movedim(-1, 1).float()
    for one, pair in ((ssim(), images()), (CrossEntropy(), (logits[:, :, 0, 0], labels[:, :, 0, 0]))):
        output, target = (x.bfloat16() for x in pair)
        assert torch.equal(one(output, target), one(output.float(), target.float()))


# WeightedSum ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [2, 0.5], [-1, 3]])
def test_a_weighted_sum_adds_up(weights):
    output, target = images()
    value, gradient = value_and_gradient(WeightedSum([nn.MSELoss(), nn.L1Loss()], weights), output, target)
    a, b = weights or (1, 1)
    error = (output - target).double().numpy()
    np.testing.assert_allclose(value, a * (error**2).mean() + b * np.abs(error).mean(), rtol=1e-6)
    np.testing.assert_allclose(gradient, (a * 2 * error + b * np.sign(error)) / error.size, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("n", "weights"), [(2, [1]), (1, [1, 1]), (0, None), (2, [0, 0]), (2, [1, float("nan")]), (1, [float("inf")])]
)
def test_weights_that_make_no_sum_are_refused(n, weights):
    with pytest.raises(UserError):
        WeightedSum([nn.MSELoss() for _ in range(n)], weights)


# SSIM -----------------------------------------------------------------------------------------------------------------


def ssim(*ranges):
    """For channels that start at 0; of a range of 4 by default."""
    loss, high = SSIMLoss(), torch.tensor(ranges or (4.0,))
    fit_to_data(loss, value_range=(torch.zeros_like(high), high))
    return loss


@pytest.mark.parametrize("value_range", [1.0, 4.0])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_ssim_is_that_of_scikit_image(value_range, offset):
    output, target = (offset + x for x in images())
    pairs = zip(output.double().flatten(0, 1).numpy(), target.double().flatten(0, 1).numpy(), strict=True)
    options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": value_range}
    expected = 1 - np.mean([skimage.metrics.structural_similarity(t, p, **options) for p, t in pairs])
    np.testing.assert_allclose(ssim(value_range)(output, target), expected, atol=2e-5)


def test_ssim_fitted_to_the_data_is_one_minus_the_metric():
    """The channels have ranges of their own, and normalised values lie on both sides of 0."""
    output, target = images()
    low, high = target.amin((0, 2, 3)), target.amax((0, 2, 3)) * torch.tensor([1.0, 3.0])
    loss = SSIMLoss()
    fit_to_data(WeightedSum([loss]), value_range=(low, high))
    expected = 1 - image_scores(output, target, low, high)["ssim"].mean()
    np.testing.assert_allclose(loss(output, target), expected, atol=2e-6)
    assert not np.allclose(ssim()(output, target), expected, atol=0.01)


@pytest.mark.parametrize("level", [0.0, -0.734, 1e3])
def test_ssim_of_constant_images_is_finite(level):
    loss, constant, (_, target) = SSIMLoss(), torch.full((3, 2, 31, 27), level), images()
    assert assert_finite(loss, constant, constant)[0] == pytest.approx(0, abs=1e-6)
    assert assert_finite(loss, constant, target)[1].any()
    assert_finite(loss, target, constant)


def test_ssim_refuses_what_it_cannot_measure():
    output, target = images()
    with pytest.raises(UserError, match="at least 11 x 11"):
        SSIMLoss()(torch.rand(1, 1, 10, 40), torch.rand(1, 1, 10, 40))
    with pytest.raises(UserError, match="channels"):
        SSIMLoss()(output[:, :1], target)


# Cross entropy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 16, 17), (8,)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_without_weights_is_that_of_torch(shape, smoothing):
    output, target = maps(shape)
    target[..., :3] = 255
    found = CrossEntropy(label_smoothing=smoothing, ignore_index=255)(output, target)
    torch.testing.assert_close(
        found, functional.cross_entropy(output, target, ignore_index=255, label_smoothing=smoothing)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_cross_entropy_is_its_definition(smoothing):
    output, target = maps()
    target[0, :5] = -100
    weights = np.array([0.5, 1.0, 4.0])
    logits = output.double().movedim(1, -1).numpy()
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    counted = target.numpy() >= 0
    classes = target.numpy()[counted]
    wanted = (1 - smoothing) * np.eye(K)[classes] + smoothing / K
    expected = (-(wanted * logp[counted]).sum(-1) * weights[classes]).mean()
    np.testing.assert_allclose(CrossEntropy(weights.tolist(), smoothing)(output, target), expected, rtol=1e-5)


def unbalanced():
    """A training split of one-number samples, and the counts of its classes."""
    target = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    return torch.randn(len(target), K, generator=torch.Generator().manual_seed(0)), target, [60.0, 30.0, 10.0]


def test_balanced_weights_are_those_of_scikit_learn():
    _, target, counts = unbalanced()
    loss = CrossEntropy("balanced")
    fit_to_data(loss, class_counts=counts)
    expected = sklearn.utils.class_weight.compute_class_weight("balanced", classes=np.arange(K), y=target.numpy())
    np.testing.assert_allclose(loss.weight, expected, rtol=1e-6)


def test_the_mean_over_single_images_is_the_loss_of_the_split():
    output, target, counts = unbalanced()
    loss = CrossEntropy("balanced")
    fit_to_data(loss, class_counts=counts)
    single = torch.stack([loss(output[i : i + 1], target[i : i + 1]) for i in range(len(target))]).mean()
    torch.testing.assert_close(single, loss(output, target))
    # Over the whole training split torch says the same, but for a single image it forgets the weights.
    torch.testing.assert_close(single, functional.cross_entropy(output, target, loss.weight))
    last = output[-1:], target[-1:]
    torch.testing.assert_close(functional.cross_entropy(*last, loss.weight), functional.cross_entropy(*last))
    torch.testing.assert_close(loss(*last), loss.weight[2] * functional.cross_entropy(*last))


def test_smoothing_does_not_make_the_rare_class_the_wanted_one():
    """Torch's smoothed and weighted loss of a common sample is least where the rare class is predicted."""
    loss = CrossEntropy("balanced", 0.1)
    fit_to_data(loss, class_counts=[980, 10, 10])
    output, target = torch.zeros(1, K), torch.tensor([0])
    _, ours = value_and_gradient(loss, output, target)
    assert ours.argmin() == 0
    _, theirs = value_and_gradient(nn.CrossEntropyLoss(loss.weight, label_smoothing=0.1), output, target)
    assert theirs.argmin() != 0


def test_a_class_that_never_occurs_is_named_and_has_no_weight(caplog):
    loss = CrossEntropy("balanced")
    with caplog.at_level(logging.WARNING):
        fit_to_data(loss, class_counts=[60, 0, 20])
    assert "class 1" in caplog.text
    np.testing.assert_allclose(loss.weight, [80 / (2 * 60), 0, 80 / (2 * 20)])
    assert_finite(loss, *maps())


@pytest.mark.parametrize("counts", [None, [], [0.0, 0.0]])
def test_there_is_no_balance_without_counts(counts):
    loss = CrossEntropy("balanced")
    with pytest.raises(UserError, match="class counts"):
        fit_to_data(WeightedSum([loss]), class_counts=counts)
    for target in (torch.tensor([0, 1]), torch.zeros(2, K)):
        with pytest.raises(UserError, match="class counts"):
            loss(torch.zeros(2, K), target)


def test_weights_logits_and_smoothing_have_to_fit():
    output, target = maps()
    for weights in ([1.0, 2.0], [1.0] * 4):
        with pytest.raises(UserError, match="3 classes"):
            CrossEntropy(weights)(output, target)
    for smoothing in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="label_smoothing"):
            CrossEntropy(label_smoothing=smoothing)
    with pytest.raises(UserError, match="classes"):  # a logit for each label
        CrossEntropy()(torch.zeros(4, 1), torch.zeros(4, K))
    loss = CrossEntropy([1, 2, 3])
    fit_to_data(loss, class_counts=[5, 6, 7])
    assert loss.weight.tolist() == [1, 2, 3]


def test_what_comes_from_the_data_is_not_in_checkpoints():
    """A network trained with one loss loads with any other; the statistics give the weights again."""
    loss = WeightedSum([CrossEntropy("balanced"), CrossEntropy([1, 2, 3]), SSIMLoss()])
    assert loss.state_dict() == {}
    fit_to_data(loss, class_counts=[5, 6, 7], n_samples=18, value_range=(torch.zeros(1), torch.ones(1)))
    assert loss.state_dict() == {}
    # Buffers all the same: they move with the model.
    assert {x.device.type for x in loss.to("meta").buffers()} == {"meta"}
    assert len(list(loss.buffers())) == 4


# Multi-label ----------------------------------------------------------------------------------------------------------


def labels():
    """A training split of 40 samples with labels of which the last is rare, and their counts."""
    target = torch.zeros(40, K)
    target[:20, 0] = target[::3, 1] = target[:2, 2] = 1
    return torch.randn(40, K, generator=torch.Generator().manual_seed(0)), target, target.sum(0).tolist()


def test_multi_label_is_that_of_torch():
    output, target, counts = labels()
    torch.testing.assert_close(
        CrossEntropy()(output, target), functional.binary_cross_entropy_with_logits(output, target)
    )
    loss = CrossEntropy("balanced")
    fit_to_data(loss, class_counts=counts, n_samples=40)
    expected = torch.tensor([(40 - count) / count for count in counts])
    torch.testing.assert_close(
        loss(output, target), functional.binary_cross_entropy_with_logits(output, target, pos_weight=expected)
    )


# Pixels that do not count, and what we rely on in smp ----------------------------------------------------------------


def fitted(make, ignore_index=255):
    loss = make()
    fit_to_data(loss, ignore_index=ignore_index)
    return loss


@every_class_loss
@pytest.mark.parametrize("ignore_index", [255, -100, -1])
def test_ignored_pixels_change_neither_value_nor_gradient(make, ignore_index):
    output, target = maps()
    target[:, 3:9, 5:] = ignore_index
    loss, ignored = fitted(make, ignore_index), (target == ignore_index)[:, None].expand_as(output)
    value, gradient = assert_finite(loss, output, target)
    assert not gradient[ignored].any()
    assert gradient[~ignored].any()
    other = torch.where(ignored, 30 * torch.randn(output.shape, generator=torch.Generator().manual_seed(1)), output)
    assert all(
        torch.equal(a, b) for a, b in zip(value_and_gradient(loss, other, target), (value, gradient), strict=True)
    )


def test_our_cross_entropy_of_ignored_pixels_alone_is_0():
    output, target = maps()
    for make in (CrossEntropy, lambda: CrossEntropy([1, 2, 3], 0.1)):
        value, gradient = value_and_gradient(fitted(make), output, torch.full_like(target, 255))
        assert value == 0
        assert not gradient.any()


class Combined(nn.Module):
    """A user's own loss, which handles its pixels by itself, with a part that need not know of it."""

    def __init__(self, **attributes):
        super().__init__()
        self.part = nn.Softmax(1)
        for name, value in attributes.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        (nn.MSELoss(), "MSELoss"),
        (smp.MCCLoss(), "MCCLoss"),
        (WeightedSum([CrossEntropy(), WeightedSum([nn.L1Loss()])]), "L1Loss"),
        (nn.Sequential(smp.DiceLoss("multiclass"), nn.BCEWithLogitsLoss()), "BCEWithLogitsLoss"),
        (Combined(), "Softmax"),
    ],
)
def test_a_loss_that_cannot_ignore_is_named(loss, named):
    with pytest.raises(UserError, match=f"^{named} cannot ignore"):
        fit_to_data(loss, ignore_index=255)
    fit_to_data(loss)


def test_the_ignored_value_reaches_every_loss():
    inner = [smp.DiceLoss("multiclass"), CrossEntropy(), Combined(ignore_index=-100)]
    fit_to_data(WeightedSum([WeightedSum(inner), nn.CrossEntropyLoss()]), ignore_index=7)
    assert [loss.ignore_index for loss in inner] == [7, 7, 7]
    # 0 is a value like any other, and None leaves what was typed.
    fit_to_data(inner[1], ignore_index=0)
    assert inner[1].ignore_index == 0
    fit_to_data(inner[1])
    assert inner[1].ignore_index == 0
