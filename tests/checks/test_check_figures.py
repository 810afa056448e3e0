"""What `make check` draws of inputs and targets."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from project.checks.figures import sees


class Train(list):
    """A dataset with a reader."""

    reader = SimpleNamespace(ids=["a", "b", "c"])


def context(target, names=()):
    """Three images, with what `encode_target` gives for them."""
    task = SimpleNamespace(
        train=lambda: None,
        geometry=lambda batch: batch,
        intensity=lambda x: x,
        inputs=lambda batch: batch["image"].float(),
        encode_target=lambda batch: target,
    )
    image = torch.arange(3 * 8 * 9).reshape(3, 1, 8, 9)
    return SimpleNamespace(
        task=task,
        train=Train("abc"),
        roles=("image", "label") if names else ("image", "value"),
        data=SimpleNamespace(classes={"label": list(names)}),
        batch=lambda n, epoch: {"image": image[:n], "index": torch.arange(n)},
        read=lambda *_: np.zeros((1, 8, 9)),
    )


@pytest.mark.parametrize(
    ("target", "names", "expected"),
    [
        (torch.tensor([[1.5], [2.0], [31.25]]), (), ["1.5", "2", "31.25"]),
        (torch.tensor([1.5, 2.0, 31.25]), (), ["1.5", "2", "31.25"]),
        (torch.arange(18.0).reshape(3, 6), (), ["0, 1, 2, 3 ...", "6, 7, 8, 9 ...", "12, 13, 14, 15 ..."]),
        (torch.tensor([1, 0, 1]), ("dark", "bright"), ["bright", "dark", "bright"]),
        (torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), ("a", "b"), ["a", "a, b", "none"]),
    ],
)
def test_a_target_that_is_no_image_is_written_above_its_input(target, names, expected):
    figure = sees(context(target, names))
    assert len(figure.axes) == 3 * 4
    titles = [axis.get_title().splitlines()[0] for axis in figure.axes[1::4]]
    assert titles == [f"input 1: {text}" for text in expected]


@pytest.mark.parametrize("target", [torch.zeros(3, 2, 8, 9), torch.zeros(3, 8, 9, dtype=torch.int64)])
def test_a_target_that_is_an_image_is_drawn(target):
    titles = [axis.get_title().splitlines()[0] for axis in sees(context(target)).axes]
    assert titles[:7] == ["file: a", "input 1", "target 1", "input 2", "target 2", "input 3", "target 3"]
