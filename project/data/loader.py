"""Loaders: batches made while the device computes, by a thread of this process or by processes of their own."""

import logging
import os
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from torch.utils.data import DataLoader

from project.data.batch import Tensors
from project.data.dataset import Key, SplitDataset

log = logging.getLogger("project")
AHEAD = 2  # batches that are made before they are asked for
HANDING_OVER = 1.2  # what a batch costs in a process, which has to hand it over, in parts of its cost in a thread
MEASURED = 1.0  # seconds of training, and
FEWEST = 6  # batches, after which the kind of reading is chosen


def as_it_is(batch: Any) -> Any:
    """The dataset makes whole batches, nothing is left to collate."""
    return batch


@dataclass
class Timing:
    """What a thread has seen so far, in seconds.

    Attributes:
        batches: Number of batches that were made.
        making: Time that it took to make them.
        waited: Time in which the training waited for them.
        total: Time in which the training got them, and used all but the last.
    """

    batches: int = 0
    making: float = 0.0
    waited: float = 0.0
    total: float = 0.0

    @property
    def enough(self) -> bool:
        """Whether a choice can be made of it."""
        return self.batches >= FEWEST and self.total >= MEASURED


@dataclass(frozen=True)
class Choice:
    """How batches are made.

    Attributes:
        num_workers: Processes; 0 is a thread of the training process.
        batch_ms: What a batch costs in the thread; None where nothing was measured.
        step_ms: What the rest of a training step takes.
    """

    num_workers: int
    batch_ms: float | None = None
    step_ms: float | None = None

    def told(self, batch_size: int) -> str:
        """The choice and its reason, in one line."""
        who = f"{self.num_workers} worker processes" if self.num_workers else "a thread in the process"
        if self.batch_ms is None or self.step_ms is None:
            return f"reading: {who}; too few batches to measure"
        return f"reading: {self.batch_ms:.3g} ms per batch of {batch_size}, {self.step_ms:.3g} ms per step: {who}"


def choose(timing: Timing, cores: int, on_cpu: bool) -> Choice:
    """A thread, unless processes would be faster by a fifth.

    A thread hands a batch over for nothing, but there is only one of it. Processes share the work, and copy every batch
    once more; where the network computes on the same cores, they take from it what they give.

    Args:
        timing: Of a thread in the training process.
        cores: For this process and its workers.
        on_cpu: Whether the network computes on these cores too.
    """
    if not timing.batches:
        return Choice(0)
    batch = timing.making / timing.batches
    step = max(timing.total - timing.waited, 0.0) / timing.batches
    processes = max(1, cores if on_cpu else cores - 1)
    shared = HANDING_OVER * batch / processes
    faster = (shared + step if on_cpu else max(shared, step)) < 0.8 * max(batch, step)
    needed = 1 + int(min(HANDING_OVER * batch / max(step, 1e-9), processes))  # one to spare
    return Choice(min(needed, processes) if faster else 0, round(1000 * batch, 3), round(1000 * step, 3))


def usable_cores(n_processes: int = 1) -> int:
    """Cores that each of `n_processes` training processes on this machine may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // n_processes)


class ThreadLoader(DataLoader[Tensors]):
    """A loader whose batches are made by a thread of this process, a few ahead: while the device computes, and while
    the thread copies out of the mapped file or augments with OpenCV, Python is free for the other.

    The thread begins with the first batch that is asked for, and ends with the epoch, or when the iterator is dropped.
    What goes wrong in it is raised where the batch is asked for.

    Args:
        dataset: The samples.
        pinned: Whether batches shall lie where a GPU can fetch them by itself.
        options: `sampler`, `batch_size`, `batch_sampler` ... as for `DataLoader`.
    """

    dataset: SplitDataset

    def __init__(self, dataset: SplitDataset, pinned: bool = False, **options: Any) -> None:
        super().__init__(dataset, collate_fn=as_it_is, pin_memory=pinned, **options)
        self.timing = Timing()

    def __iter__(self) -> Iterator[Tensors]:  # type: ignore[override]
        assert self.batch_sampler is not None
        return self._in_thread(iter(self.batch_sampler))

    def _in_thread(self, keys: Iterator[Sequence[Key]]) -> Generator[Tensors]:
        """Batches of these keys; a generator, so that nothing runs before the first is asked for."""
        work = _Work(self.dataset.for_thread(self.pin_memory), keys)
        thread = threading.Thread(target=work.run, name="reading", daemon=True)
        thread.start()
        last = None
        try:
            while (batch := self._next(work, last)) is not None:
                last = time.perf_counter()
                yield batch
                del batch  # its memory may be used again
        finally:
            work.stop()
            if not sys.is_finalizing():
                thread.join()

    def _next(self, work: "_Work", last: float | None) -> Tensors | None:
        asked = time.perf_counter()
        made = work.made.get()
        got = time.perf_counter()
        if isinstance(made, BaseException):
            raise made
        # Nothing was ready for the first batch, and the first step is slower than those that follow.
        if last is not None and made is not None:
            self.timing.waited += got - asked
            self.timing.total += got - last
            self.timing.making += made[1]
            self.timing.batches += 1
        work.free.release()
        return made and made[0]


class _Work:
    """What a thread does. It knows nothing of the loader, which is thus dropped as soon as nobody else holds it."""

    def __init__(self, dataset: SplitDataset, keys: Iterator[Sequence[Key]]) -> None:
        self.dataset, self.keys = dataset, keys
        self.made: SimpleQueue[tuple[Tensors, float] | BaseException | None] = SimpleQueue()
        self.free, self.stopped = threading.Semaphore(AHEAD), False

    def run(self) -> None:
        try:
            while self.free.acquire() and not self.stopped and (keys := next(self.keys, None)) is not None:
                start = time.perf_counter()
                batch = self.dataset.__getitems__(keys)
                self.made.put((batch, time.perf_counter() - start))
                del batch
            self.made.put(None)
        except BaseException as error:  # the training gets it, with the traceback of this thread
            self.made.put(error)

    def stop(self) -> None:
        self.stopped = True
        self.free.release()


class MeasuringLoader(ThreadLoader):
    """A `ThreadLoader` that goes over to processes where the thread cannot keep up; see `choose`.

    It measures during the first second of training, on the steps themselves. Since what is drawn for a sample depends
    on (seed, epoch, index) alone, the batches are the same whatever is chosen.

    Args:
        dataset: The samples.
        on_cpu: Whether the network computes on the cores that would read.
        n_processes: Training processes on this machine.
        tell: Whether to log the choice.
        pinned, options: See `ThreadLoader`.

    Attributes:
        choice: What was chosen; None before.
    """

    def __init__(
        self, dataset: SplitDataset, on_cpu: bool, n_processes: int = 1, tell: bool = True, **options: Any
    ) -> None:
        self.cores, self.on_cpu, self.tell = usable_cores(n_processes), on_cpu, tell
        self.choice: Choice | None = None
        # DataLoader accepts lasting processes only from the start; how many comes later.
        super().__init__(dataset, num_workers=self.cores, persistent_workers=True, **options)

    def __iter__(self) -> Iterator[Tensors]:  # type: ignore[override]
        if self.choice is None:
            return self._measured()
        return DataLoader.__iter__(self) if self.choice.num_workers else super().__iter__()

    def _measured(self) -> Iterator[Tensors]:
        assert self.batch_sampler is not None
        keys = list(self.batch_sampler)
        with closing(self._in_thread(iter(keys))) as batches:
            for given, batch in enumerate(batches, start=1):
                yield batch
                del batch
                if self.choice is None and self.timing.enough:
                    self._choose()
                if self.choice is not None and self.choice.num_workers:
                    keys = keys[given:]
                    break
            else:
                return
        # In the epochs to come the processes last; those of this loader end with the epoch.
        yield from DataLoader(
            self.dataset,
            batch_sampler=keys,
            collate_fn=as_it_is,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
        )

    def _choose(self) -> None:
        self.choice = choose(self.timing, self.cores, self.on_cpu)
        self.num_workers = self.choice.num_workers or self.num_workers
        if self.tell:
            log.info(self.choice.told(self.batch_size or 1))
