"""Image-to-metrics: a PyTorch Lightning template for imaging research."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from project.inference.model import Model

# Otherwise albumentations asks a package index for a newer version on import, in every worker.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
__version__ = "0.1.0"


def load(runs: str | Path | Sequence[str | Path], accelerator: str | None = None, trust: bool = False) -> "Model":
    """A trained run, or the mean of several, to predict with: `load("runs/unet_mse/latest").predict(image)`.

    Args:
        runs: See `project.inference.model.load`.
        accelerator: The same.
        trust: The same.

    Raises:
        UserError: The same.
    """
    from project.inference.model import load as load_model

    return load_model(runs, accelerator, trust)
