"""Base class of baselines: `fit` instead of training; the result is stored in buffers."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from project.errors import UserError

Pairs = Iterable[tuple[Tensor, Tensor]]

RAREST = 1e-6  # the least probability that a baseline gives: with 0, one surprise would make the mean loss infinite


class Baseline(nn.Module):
    """A network that is fitted. Its buffers take their shapes from the data, and from the checkpoint when loaded."""

    def fit(self, pairs: Pairs) -> None:
        """Find the buffers.

        Args:
            pairs: Batches of whole normalized images (B, C, H, W) float32, and encoded targets: (B, C', H, W) in
                translation, (B, H, W) in segmentation, (B,) or (B, K) in classification, (B, K) in regression.
        """
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def fit_to_batches(task: Any, batches: Any) -> None:
    """Fit the baseline of a task to its normalized inputs and targets.

    One with `most_images` gets a sample of the images, and a number for the group of each, (B,) int64.
    """
    net = task.net
    with torch.no_grad():
        if not hasattr(net, "most_images"):
            net.fit((task.network_input(batch), task.make_target(batch)) for batch in batches)
            return
        reader = batches.dataset.reader
        most = net.most_images(reader.shapes["image"])
        groups = torch.from_numpy(np.unique(reader.groups, return_inverse=True)[1])
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(groups)))
        parts = ((batch, order[batch["index"]] < most) for batch in batches)
        chosen = ({name: values[part] for name, values in batch.items()} for batch, part in parts if part.any())
        net.fit((task.network_input(batch), task.make_target(batch), groups[batch["index"]]) for batch in chosen)


def known(target: Tensor, classes: int) -> Tensor:
    """Where a target has one of the classes, not the value for "not annotated"."""
    return (target >= 0) & (target < classes)


def nothing_known(classes: int) -> UserError:
    """What to say where no target of the training split holds a class."""
    return UserError(
        f"nothing to fit a baseline to: in the training split, no label or pixel is of class 0..{classes - 1}"
    )


def log_probabilities(scores: Tensor, present: Tensor) -> Tensor:
    """Softmax over the classes that occurred in training; the others get the least probability.

    Args:
        scores: (B, K, ...).
        present: (K,) bool.

    Returns:
        (B, K, ...) float32, finite.
    """
    absent = ~present.view(1, -1, *[1] * (scores.ndim - 2))
    return scores.masked_fill(absent, -torch.inf).log_softmax(1).clamp(min=math.log(RAREST)).float()
