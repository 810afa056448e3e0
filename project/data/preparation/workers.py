"""Parallel work in this process or in worker processes (joblib), and its progress."""

import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from joblib import Parallel, cpu_count, delayed, parallel_config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from project.errors import UserError

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Workers:
    """Runs functions on many tasks."""

    count: int  # How many tasks are worked on at a time
    for_small_jobs: bool  # Distribute these too, although starting processes costs more than they save

    def run(
        self, function: Callable[[Task], Outcome], tasks: Iterable[Task], is_small: bool = False
    ) -> Iterator[tuple[Task, Outcome]]:
        """Run the function on every task; yield (task, result) in their order.

        At most two tasks per worker are waiting, so that memory does not grow with their number.
        """
        if self.count == 1 or (is_small and not self.for_small_jobs):
            for task in tasks:
                yield task, function(task)
            return
        waiting = deque[Task]()

        def calls() -> Iterator[object]:
            for task in tasks:
                waiting.append(task)
                yield delayed(function)(task)

        parallel = Parallel(self.count, return_as="generator", batch_size=1, max_nbytes=None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A worker stopped|.*tasks? .*(cancelled|not used)")
            for outcome in parallel(calls()):
                yield waiting.popleft(), outcome


@contextmanager
def start_workers(processes: int | None = None) -> Iterator[Workers]:
    """Workers on this machine; a `UserError` if one is killed.

    `processes` is their number: 1 is this process itself; by default one per core for large jobs.
    """
    if processes is not None and processes < 1:
        raise UserError(f"{processes} processes cannot work; take 1 or more")
    count = processes or cpu_count()
    try:
        with parallel_config("loky", initializer=_prepare_process, initargs=(os.getpid(),)):
            yield Workers(count, for_small_jobs=processes is not None)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that prepared images was killed, most likely because memory ran out; finished parts are kept. "
            f"Run the same command again, with fewer processes: --processes {max(1, count // 2)}"
        ) from error


def _prepare_process(parent: int) -> None:
    """Leave Ctrl-C to the parent process, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


LINE_SECONDS = 30.0  # between lines where there is no terminal, as in a log file


class ProgressReporter:
    """Shows how many images are done, and the time that remains. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        self.progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
        self.console, self.task, self.shows_bar = console, self.progress.add_task(""), console.is_terminal

    def __enter__(self) -> "ProgressReporter":
        if self.shows_bar:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.shows_bar:
            self.progress.stop()

    def start(self, description: str, total: int) -> None:
        """Begin a piece of work, such as "Reading", on so many images."""
        self.description, self.total, self.done, self.earlier = description, total, 0, 0
        self.began = self.last = time.monotonic()
        self.progress.reset(self.task, description=description, total=total)

    def advance(self, images: int, earlier: bool = False) -> None:
        """Count images that are done; those of an `earlier` run took no time."""
        self.done, self.earlier = self.done + images, self.earlier + images * earlier
        self.progress.update(self.task, completed=self.done)
        if not self.shows_bar and time.monotonic() - self.last > LINE_SECONDS:
            self.last = time.monotonic()
            seconds = (self.last - self.began) / max(self.done - self.earlier, 1) * (self.total - self.done)
            remaining = format_duration(seconds)
            self.console.print(f"{self.description}: {self.done} of {self.total} images, {remaining} left")


def format_duration(seconds: float) -> str:
    """Such as "0.8 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
