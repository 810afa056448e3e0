"""Unused stages of encoders: segmentation_models_pytorch builds all five, whatever `encoder_depth` says."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

SIZE = 64  # side of the probe image in pixels; small, as only the graph of gradients counts


class Dropped(nn.Module):
    """Placeholder for a stage without influence on the output; some encoders still call it."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Returns its first argument."""
        return x


def drop_unused(net: nn.Module, last_only: bool = False) -> None:
    """Remove the stages of the encoders in a network that its output cannot depend on, and freeze what stays of them.

    They would never get a gradient: DistributedDataParallel fails on them, and layer-wise learning rates count them.

    Args:
        net: Any network; its encoders are the modules that smp defines. It is changed in place, once.
        last_only: Whether only the last feature map of an encoder is used; else all are.
    """
    for encoder in _encoders(net):
        if hasattr(encoder, "dropped_stages"):
            continue
        unused = _unused(encoder, last_only) or set()
        removed = {name: encoder.get_submodule(name) for name in _modules_of(encoder, unused)}
        for name in removed:
            encoder.set_submodule(name, Dropped())
        if removed and _unused(encoder, last_only) is None:  # something needs their output
            for name, module in removed.items():
                encoder.set_submodule(name, module)
            removed = {}
        for parameter in encoder.parameters():
            if id(parameter) in unused:
                parameter.requires_grad_(False)
        encoder.dropped_stages = list(removed)


def dropped_stages(module: nn.Module) -> list[str]:
    """Dotted names, from `module` on, of everything that `drop_unused` removed."""
    return [
        f"{name}.{stage}".lstrip(".")
        for name, inner in module.named_modules()
        for stage in getattr(inner, "dropped_stages", [])
    ]


def _encoders(module: nn.Module) -> Iterator[Any]:
    """The outermost modules that are encoders of smp."""
    if type(module).__module__.startswith("segmentation_models_pytorch.encoders.") and hasattr(module, "_in_channels"):
        yield module
        return
    for child in module.children():
        yield from _encoders(child)


def _unused(encoder: Any, last_only: bool) -> set[int] | None:
    """Ids of the trainable parameters that no used feature map depends on; None where the encoder cannot be run."""
    trainable = [p for p in encoder.parameters() if p.requires_grad]
    training = encoder.training
    encoder.eval()  # batch statistics and random numbers stay as they are
    try:
        with torch.enable_grad():
            maps = encoder(torch.zeros(1, encoder._in_channels, SIZE, SIZE, device=trainable[0].device))
            total = sum(feature.sum() for feature in (maps[-1:] if last_only else maps) if feature.requires_grad)
            gradients = torch.autograd.grad(total, trainable, allow_unused=True)
    except (RuntimeError, LookupError, TypeError, ValueError, AssertionError):  # a few take one size of image only
        return None
    finally:
        encoder.train(training)
    return {id(p) for p, gradient in zip(trainable, gradients, strict=True) if gradient is None}


def _modules_of(module: nn.Module, unused: set[int], prefix: str = "") -> Iterator[str]:
    """The largest modules all of whose parameters are unused."""
    for name, child in module.named_children():
        parameters = [id(p) for p in child.parameters()]
        if parameters and unused.issuperset(parameters):
            yield prefix + name
        elif parameters:
            yield from _modules_of(child, unused, f"{prefix}{name}.")
