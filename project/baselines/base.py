"""Base class of baselines: `fit` instead of training; the result is stored in buffers."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from project.data.batch import Tensors
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


def fit_to_batches(task: Any, batches: Iterable[Tensors]) -> None:
    """Fit the baseline of a task to its normalized inputs and targets.

    A baseline with an attribute `classes` of 0 gets the number of classes first.
    """
    if getattr(task.net, "classes", None) == 0:
        task.net.classes = task.n_classes
    with torch.no_grad():
        task.net.fit((task.network_input(batch), task.make_target(batch)) for batch in batches)


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
