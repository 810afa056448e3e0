"""Mean of one number per training step, over the steps and devices."""

import torch
from torch import Tensor

from project.metrics.base import distributed


class StepMean:
    """Mean of one number per step; stays on the device, where nothing waits for it, until it is asked for."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0
        self.mean: float | None = None

    def add(self, value: Tensor) -> None:
        """Add the number of a step, a scalar on any device."""
        value = value.detach().float()
        self.total = value if self.total is None else self.total + value
        self.count, self.mean = self.count + 1, None

    def compute(self) -> float:
        """The mean, NaN before any step; a collective operation when first called after a step."""
        if self.mean is None:
            total, count = self._sums()
            self.mean = (total / count).item()
        return self.mean

    def _sums(self) -> Tensor:
        total = torch.zeros(()) if self.total is None else self.total
        sums = torch.stack([total, torch.full_like(total, self.count)])
        if distributed():
            torch.distributed.all_reduce(sums)
        return sums
