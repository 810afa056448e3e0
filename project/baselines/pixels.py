"""Training pixels, sampled from all images."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor


def sample_pixels(
    batches: Iterable[tuple[Tensor, Tensor, Tensor]], n_pixels: int, read: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """At most `n_pixels` pixels, all equally likely, in memory that does not grow with the number of images.

    Every pixel gets a random key, and those with the smallest keys so far are kept: Efraimidis and Spirakis (2006),
    "Weighted random sampling with a reservoir", with equal weights. So the pixels are the same ones, in the same
    order, however the images are cut into batches.

    Args:
        batches: Input (B, C, H, W), target (B, C', H, W), and where the target counts (B, H, W).
        n_pixels: Of all images together.
        read: Input, numbers of images in the batch (n,) and of pixels in them (n,) -> features (n, F).

    Returns:
        Features (n, F) and targets (n, C'), float32.
    """
    rng, keys, rows, n_targets = np.random.default_rng(0), np.empty(0), np.empty((0, 0), np.float32), 0
    for x, y, counts in batches:
        pixels = counts.flatten().nonzero()[:, 0].cpu().numpy()
        candidates = np.concatenate([keys, rng.random(len(pixels))])
        chosen = np.arange(len(candidates))
        if len(candidates) > n_pixels:
            chosen = np.argpartition(candidates, n_pixels)[:n_pixels]
        old, new = chosen[chosen < len(keys)], chosen[chosen >= len(keys)]
        if len(new) == 0:
            continue
        where = np.divmod(pixels[new - len(keys)], y.shape[2] * y.shape[3])
        image, pixel = (torch.from_numpy(part).to(x.device) for part in where)
        columns = read(x, image, pixel), y.flatten(2)[image, :, pixel]
        table = torch.cat([column.float() for column in columns], dim=1).cpu().numpy()
        rows, n_targets = np.concatenate([rows[old], table]) if len(old) else table, y.shape[1]
        keys = np.concatenate([candidates[old], candidates[new]])
    rows = rows[np.argsort(keys)]
    return rows[:, : rows.shape[1] - n_targets], rows[:, rows.shape[1] - n_targets :]
