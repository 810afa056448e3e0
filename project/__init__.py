"""From a folder of images to numbers that can be trusted."""

import os

# albumentations asks a package index for a newer version of itself on import, in every worker: never.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
