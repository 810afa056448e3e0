"""Statistics of annotated objects: their number, sizes, and how many of them touch another one."""

import math
from collections import Counter
from typing import Any

import numpy as np

AREA_PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
# A gap of one pixel counts as touching: a network hardly predicts it. One of each pair of opposite directions.
NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))  # dy, dx


def summarize_objects(areas: Counter[int], n_touching: int) -> dict[str, Any]:
    """Number of objects, of those that touch another one, and percentiles of the areas in pixels; as plain JSON."""
    pixels = np.array(sorted(areas.elements()))
    percentiles = dict(zip(AREA_PERCENTILES, np.percentile(pixels, AREA_PERCENTILES).tolist(), strict=True))
    named = {f"{p:g}": area for p, area in percentiles.items()}
    return {"n": len(pixels), "n_touching": n_touching, "area_percentiles": named}


def touching(instances: np.ndarray) -> np.ndarray:
    """Whether each object of (H, W) is within two pixels of another one, (largest number + 1,) bool."""
    result = np.zeros(int(instances.max(initial=0)) + 1, bool)
    height, width = instances.shape
    for dy, dx in NEIGHBORS:
        first = instances[: height - dy, max(-dx, 0) : width - max(dx, 0)]
        second = instances[dy:, max(dx, 0) : width + min(dx, 0)]
        pair = (first != second) & (first > 0) & (second > 0)
        result[first[pair]] = result[second[pair]] = True
    return result


def median_diameter(statistics: dict[str, Any]) -> float | None:
    """Diameter in pixels of a disk of the median area, from the attribute `statistics`; None without objects."""
    area = statistics.get("instances", {}).get("area_percentiles", {}).get("50")
    return None if area is None else 2 * math.sqrt(area / math.pi)
