"""What `make check` draws of inputs and targets."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from project.checks.figures import sees


class Train(list):
    """A dataset with a reader."""

    reader = SimpleNamespace(ids=["a", "b", "c"])


def context(target):
    """Three images, with what `make_target` gives for them."""
    task = SimpleNamespace(
        train=lambda: None,
        device_augmentation=lambda batch: batch,
        intensity_augmentation=lambda x: x,
        network_input=lambda batch: batch["image"].float(),
        describe_target=lambda target: "described",
        make_target=lambda batch: target,
    )
    image = torch.arange(3 * 8 * 9).reshape(3, 1, 8, 9)
    return SimpleNamespace(
        task=task,
        train=Train("abc"),
        batch=lambda n, epoch: {"image": image[:n], "index": torch.arange(n)},
        read=lambda *_: np.zeros((1, 8, 9)),
    )


@pytest.mark.parametrize("target", [torch.zeros(3), torch.zeros(3, 6)])
def test_a_target_that_is_no_image_is_described_above_its_input(target):
    figure = sees(context(target))
    assert len(figure.axes) == 3 * 4
    assert {axis.get_title().splitlines()[0] for axis in figure.axes[1::4]} == {"input 1: described"}


@pytest.mark.parametrize("target", [torch.zeros(3, 2, 8, 9), torch.zeros(3, 8, 9, dtype=torch.int64)])
def test_a_target_that_is_an_image_is_drawn(target):
    titles = [axis.get_title().splitlines()[0] for axis in sees(context(target)).axes]
    assert titles[:7] == ["file: a", "input 1", "target 1", "input 2", "target 2", "input 3", "target 3"]
