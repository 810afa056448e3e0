"""Memory for time: activations that are computed again in the backward pass instead of being kept."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import is_grad_enabled, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from project.errors import UserError


def checkpoint_activations(net: nn.Module) -> int:
    """Let each block of a network keep its input only (Chen et al. 2016, arXiv 1604.06174).

    A block is the innermost element of an `nn.ModuleList` or `nn.Sequential` that consists of several layers: the
    levels of `project.models.unet.UNet`, the residual blocks and decoder blocks of segmentation_models_pytorch, the
    blocks of timm. Losses and gradients are those without it; dropout is drawn alike, and running statistics of batch
    normalisation are updated once. Names of parameters stay as they are, and inference costs nothing more.

    Args:
        net: Is changed in place.

    Returns:
        The number of blocks.

    Raises:
        UserError: The network has no such blocks.
    """
    found = list(_blocks(net))
    if not found:
        raise UserError(
            f"checkpoint_activations: {type(net).__name__} has no blocks, that is no `nn.ModuleList` or "
            "`nn.Sequential` of parts with several layers"
        )
    for block in found:
        # A partial and not a closure: copies of the network, such as averaged weights, then call their own blocks.
        block.forward = partial(_forward, block)
    return len(found)


def _blocks(module: nn.Module, is_element: bool = False) -> Iterator[nn.Module]:
    in_list = isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential)
    inner = [block for child in module.children() for block in _blocks(child, in_list)]
    if inner:
        yield from inner
    # Lists have no forward pass of their own.
    elif is_element and not isinstance(module, nn.ModuleList | nn.ModuleDict) and len(list(module.modules())) > 2:
        yield module


def _forward(block: nn.Module, *args: Any, **options: Any) -> Any:
    plain = partial(type(block).forward, block)
    if not is_grad_enabled():
        return plain(*args, **options)
    contexts = partial(_contexts, block)
    return checkpoint(plain, *args, use_reentrant=False, context_fn=contexts, **options)


def _contexts(block: nn.Module) -> Any:
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """While a block is computed again, batch statistics are used as before but no longer counted.

    With a momentum of 0 running statistics stay as they are, bit for bit. With none at all, other tensors would be
    saved than the first time, which is refused.
    """
    norms = [module for module in block.modules() if isinstance(module, _NormBase) and module.training]
    before = [(module.momentum, module.num_batches_tracked) for module in norms]
    for module in norms:
        module.momentum, module.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for module, (momentum, count) in zip(norms, before, strict=True):
            module.momentum, module.num_batches_tracked = momentum, count
