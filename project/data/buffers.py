"""Memory for batches."""

import math
import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import get_worker_info

# Batches that are in use at the same time: made, waiting, computed on. Of more than these the memory is given back.
KEPT = 12
HUGE_PAGE = 2**21


class _Memory:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.used: Callable[[], np.ndarray | None] = lambda: None  # gives None as soon as no tensor shows the memory


class Buffers:
    """Gives out the memory of batches, and takes it again when nobody holds the batch: fresh memory costs as much time
    as the reading itself, because the system has to clear it page by page.

    In a worker process it gives out memory that the training process can see, where a batch would be copied otherwise.
    Not for several threads at once.

    Args:
        pinned: Whether a GPU shall be able to fetch the batches by itself; PyTorch then keeps the memory.
    """

    def __init__(self, pinned: bool = False) -> None:
        self.pinned = pinned
        self._kept: list[_Memory] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> torch.Tensor:
        """A tensor of any content, shape and dtype of `numpy.empty`."""
        n_bytes, dtype = math.prod(shape) * dtype.itemsize, dtype if dtype.isnative else dtype.newbyteorder("=")
        if get_worker_info() is not None:
            # As in torch's own `default_collate`.
            storage = torch.UntypedStorage._new_shared(n_bytes)
            return torch.from_numpy(np.empty(0, dtype)).set_(storage, 0, shape)  # type: ignore[call-overload]
        if self.pinned:
            return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)
        return torch.from_numpy(self._array(shape, dtype, n_bytes))

    def _array(self, shape: tuple[int, ...], dtype: np.dtype, n_bytes: int) -> np.ndarray:
        memory = next((each for each in self._kept if len(each.array) == n_bytes and each.used() is None), None)
        if memory is None:
            memory = _Memory(_aligned(n_bytes))
            # One of another size makes way.
            self._kept = [*[each for each in self._kept if each.used() is not None][: KEPT - 1], memory]
        array = np.ndarray(shape, dtype, memory.array.data)
        memory.used = weakref.ref(array)
        return array

    def __reduce__(self) -> tuple[type["Buffers"], tuple[bool]]:
        return Buffers, (self.pinned,)


def _aligned(n_bytes: int) -> np.ndarray:
    """NumPy asks Linux for huge pages; only whole ones are given."""
    if n_bytes < HUGE_PAGE:
        return np.empty(n_bytes, np.uint8)
    memory = np.empty(n_bytes + HUGE_PAGE, np.uint8)
    start = -memory.ctypes.data % HUGE_PAGE
    return memory[start : start + n_bytes]
