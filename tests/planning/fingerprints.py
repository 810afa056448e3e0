"""Made-up fingerprints of datasets."""

from dataclasses import replace
from typing import Any

from project.data.normalization import Levels
from project.planning.appearance import Appearance
from project.planning.fingerprint import Fingerprint, Objects

CLEAR = Appearance(structure=20.0, noise=0.1, n_independent=200)
OBJECTS = Objects(n=500, touching=0.3, diameter=20.0, large_diameter=30.0, smallest_area=50.0)
LAMPS = Levels(apart=1.0)  # brightness differs between images


def fingerprint(role: str = "target", size: tuple[int, int] = (512, 512), n: int = 100, **changes: Any) -> Fingerprint:
    """A dataset with targets of one kind, 100 images of 512 x 512 pixels, but for the changes."""
    data = Fingerprint("mine", ("image", role), n, 20, {size: n}, appearance=CLEAR, inputs=LAMPS)
    data = replace(data, facts={"training images": str(n)})
    if role == "target":
        data = replace(data, targets=Levels())
    elif role == "mask":
        data = replace(data, mask={"background": 0.7, "cell": 0.3}, background="background")
    elif role == "label":
        data = replace(data, labels={"a": n // 2, "b": n - n // 2})
    return replace(data, **changes)
