"""Who does the work: this process, a pool of processes, or a Dask cluster; and how far it is."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from project.errors import UserError

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")
LINE_EVERY = 30.0  # seconds between lines where there is no terminal, as in the log of a night


class InProcess(Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call the function; what it raises comes out of the future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(ProcessPoolExecutor):
    """Processes that leave Ctrl-C to this one, and end with it even if it is killed."""

    def __init__(self, count: int) -> None:
        # Not forked: a fork copies locks that other threads hold, and handles of HDF5.
        context = multiprocessing.get_context("spawn")
        # Nothing is ever sent: the other end is closed when this process ends, however it does.
        parent, self._line = context.Pipe(duplex=False)
        super().__init__(count, context, initializer=_end_with, initargs=(parent,))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a process if there is need of one, and hand over the task."""
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return super().submit(fn, *args, **kwargs)
        # A process inherits what is blocked. Ctrl-C in a terminal goes to all, and the others may just be starting.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self._line.close()  # not to wait for what nobody needs any more
        self.shutdown(cancel_futures=True)


def _end_with(parent: Connection) -> None:
    def watch() -> None:
        parent.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Workers:
    """Who works, on how many tasks at a time.

    Attributes:
        pool: Takes the tasks.
        at_a_time: How many it works on.
        always: Whether it also gets what is soon done, for which starting processes costs more than they save.
    """

    pool: Executor
    at_a_time: int
    always: bool

    def run(
        self, function: Callable[[Task], Outcome], tasks: Iterable[Task], little: bool = False
    ) -> Iterator[tuple[Task, Outcome]]:
        """Run the function on every task; yield (task, result) as they are done, in any order.

        No more than a few tasks wait at a time, so that memory does not grow with their number.
        """
        waiting: dict[Future[Outcome], Task] = {}
        pool, most = (InProcess(), 1) if little and not self.always else (self.pool, 2 * self.at_a_time)
        for task in tasks:
            waiting[pool.submit(function, task)] = task
            while len(waiting) >= most:
                yield from _done(waiting)
        while waiting:
            yield from _done(waiting)


def _done(waiting: dict[Future[Outcome], Task]) -> Iterator[tuple[Task, Outcome]]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(future), future.result()


@contextmanager
def workers(processes: int | None = None, cluster: str | None = None) -> Iterator[Workers]:
    """Those who work; the processes end with the context.

    Args:
        processes: On this machine: 1 is this process itself; by default one per core, where there is much to do.
        cluster: Address of a Dask scheduler whose workers do it instead, such as "tcp://10.0.0.1:8786". They need this
            project, and the same paths.

    Raises:
        UserError: The cluster does not answer, or a process was killed.
    """
    if processes is not None and processes < 1:
        raise UserError(f"{processes} processes cannot work; take 1 or more")
    count = processes or available_cores()
    if cluster:
        with _cluster(cluster) as found:
            yield found
    elif count == 1:
        yield Workers(InProcess(), 1, True)
    else:
        try:
            with Processes(count) as pool:
                yield Workers(pool, count, processes is not None)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that prepared images was killed, most likely because memory ran out; what is done is kept. "
                f"Run the same command again, with fewer processes: PROCESSES={max(1, count // 2)}"
            ) from error


@contextmanager
def _cluster(address: str) -> Iterator[Workers]:
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise UserError("CLUSTER needs Dask; install the extra: `pip install -e .[cluster]`") from error
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(f"no Dask scheduler answers at {address}: {error}") from error
    with client:
        found = client.scheduler_info(n_workers=-1)["workers"]
        if not found:
            raise UserError(f"the Dask cluster at {address} has no workers")
        try:
            yield Workers(client.get_executor(), sum(worker["nthreads"] for worker in found.values()), True)
        except (KilledWorker, CancelledError) as error:
            raise UserError(
                f"the Dask cluster at {address} gave up: {str(error) or 'its scheduler ended'}\nWorkers are mostly "
                "killed because memory ran out. What is done is kept; run the same command again to go on."
            ) from error


class Reporter:
    """Shows how far the work is: a bar on a terminal, else a line now and then. Use as a context manager.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        counts = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self.progress = Progress(*counts, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
        self.task = self.progress.add_task("", rate="")

    def __enter__(self) -> "Reporter":
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.progress.stop()

    def start(self, what: str, total: int) -> None:
        """Begin with the next piece of work.

        Args:
            what: What is done, such as "Reading".
            total: Number of images.
        """
        self.what, self.total = what, total
        self.done = self.n_bytes = self.earlier = 0
        self.began = self.last = time.monotonic()
        self.progress.reset(self.task, description=what, total=total, rate="")

    def advance(self, images: int, n_bytes: int = 0, earlier: bool = False) -> None:
        """Some images are done.

        Args:
            images: How many.
            n_bytes: What they take in the file.
            earlier: Whether they were found done, which says nothing of the rate.
        """
        self.done, self.n_bytes = self.done + images, self.n_bytes + n_bytes * (not earlier)
        self.earlier += images * earlier
        self.progress.update(self.task, completed=self.done, rate=self.rate())
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last > LINE_EVERY:
            self.last = now
            self.console.print(f"{self.what}: {self.done} of {self.total} images, {self.rate()}, {self.left()} left")

    def rate(self) -> str:
        """Such as "212 images/s, 111 MB/s"."""
        seconds = max(time.monotonic() - self.began, 1e-3)
        text = f"{(self.done - self.earlier) / seconds:.3g} images/s"
        return f"{text}, {self.n_bytes / seconds / 1e6:.3g} MB/s" if self.n_bytes else text

    def left(self) -> str:
        """The time that the rest will take, as "3 min 20 s"."""
        fresh = self.done - self.earlier
        seconds = (time.monotonic() - self.began) / max(fresh, 1) * (self.total - self.done)
        return duration(seconds)


def duration(seconds: float) -> str:
    """Such as "0.8 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
