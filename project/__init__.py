"""Image-to-metrics: a PyTorch Lightning template for imaging research."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from project.inference.model import load as load

# Otherwise albumentations asks a package index for a newer version on import, in every worker.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":  # imports torch, which other parts of the project do without
        from project.inference.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
