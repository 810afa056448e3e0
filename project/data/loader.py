"""Data loader with a background thread: batches are made while the device computes."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch.utils.data import DataLoader

from project.data.batch import Tensors
from project.data.dataset import SplitDataset

PREFETCH = 2  # batches that are made before they are asked for


def whole_batch(batch: Any) -> Any:
    """Collate function that does nothing: the dataset makes whole batches."""
    return batch


class ThreadLoader(DataLoader[Tensors]):
    """Loader whose batches are made by one thread of this process, `PREFETCH` batches ahead.

    Copying from the mapped file and augmenting with OpenCV release Python's lock, so one thread keeps up with most
    networks, without a copy between processes. The thread starts with the first batch and ends with the epoch, or when
    the iterator is dropped. An error in it is raised where the batch is asked for.

    With `pin_memory`, batches are in page-locked memory, from where a GPU fetches them by itself.
    """

    dataset: SplitDataset

    def __init__(self, dataset: SplitDataset, pin_memory: bool = False, **options: Any) -> None:
        super().__init__(dataset, collate_fn=whole_batch, pin_memory=pin_memory, **options)

    def __iter__(self) -> Iterator[Tensors]:  # type: ignore[override]
        assert self.batch_sampler is not None
        dataset, keys, pending = self.dataset.thread_copy(), iter(self.batch_sampler), deque[Future[Tensors]]()

        def load(batch_keys: Any) -> Tensors:
            batch = dataset.__getitems__(batch_keys)
            return {name: tensor.pin_memory() for name, tensor in batch.items()} if self.pin_memory else batch

        executor = ThreadPoolExecutor(1, thread_name_prefix="loader")
        try:
            for batch_keys in keys:
                pending.append(executor.submit(load, batch_keys))
                if len(pending) > PREFETCH:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)
