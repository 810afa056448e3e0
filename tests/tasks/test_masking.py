"""Hidden patches."""

import pytest
import torch

from project.tasks.masking import hide, random_patches


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_image_has_as_many_hidden_patches_elsewhere():
    hidden = random_patches(6, 32, 48, 8, 0.5, generator())
    assert torch.equal(random_patches(6, 30, 41, 8, 0.5, generator()), hidden[..., :30, :41])  # cut at the border
    assert hidden.shape == (6, 1, 32, 48)
    cells = hidden.view(6, 4, 8, 6, 8)
    assert torch.equal(cells.all(4).all(2), cells.any(4).any(2))  # whole patches
    assert cells.all(4).all(2).sum((1, 2)).tolist() == [12] * 6
    assert len({tuple(each.flatten().tolist()) for each in hidden}) == 6
    assert torch.equal(hidden, random_patches(6, 32, 48, 8, 0.5, generator()))


@pytest.mark.parametrize("ratio", [0.001, 0.999])
def test_something_is_hidden_and_something_is_seen(ratio):
    hidden = random_patches(2, 16, 16, 8, ratio, generator())
    assert hidden.flatten(1).any(1).all()
    assert (~hidden).flatten(1).any(1).all()


def test_nothing_of_what_is_hidden_can_be_seen():
    hidden = random_patches(4, 16, 16, 4, 0.5, generator())
    x = torch.randn(4, 2, 16, 16)
    other = torch.where(hidden, torch.randn(4, 2, 16, 16), x)
    assert torch.equal(hide(x, hidden), hide(other, hidden))
    seen = hide(x, hidden)
    assert torch.equal(torch.where(hidden, 0, seen), torch.where(hidden, 0, x))
    for i in range(4):
        for c in range(2):
            expected = x[i, c][~hidden[i, 0]].mean()
            assert torch.allclose(seen[i, c][hidden[i, 0]], expected, atol=1e-6)
