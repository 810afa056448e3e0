"""From a folder of images to numbers that can be trusted."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from project.inference.model import Model

# albumentations asks a package index for a newer version of itself on import, in every worker: never.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Threads that wait shall sleep. By default they spin, and where other programs want the cores too, a training step was
# measured 20 times slower for it; alone it is a tenth faster: set OMP_WAIT_POLICY=ACTIVE on a machine of your own.
# Read when torch or scikit-learn is loaded, hence before either.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
