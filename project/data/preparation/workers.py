"""Parallel work in this process or in worker processes (joblib), and its progress."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
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


LINE_SECONDS = 30.0  # between lines where there is no terminal, as in a log file


class ProgressReporter(Progress):
    """Shows how many images are done, and the time that remains. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        super().__init__(
            *columns,
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=3600,
        )
        self.add_task("")

    def begin(self, description: str, total: int, completed: int = 0) -> None:
        """Begin a piece of work, such as "Reading", on so many images; `completed` are of an earlier run."""
        self.reset(self.task_ids[0], description=description, total=total, completed=completed)
        self.last_line = self.get_time()

    def count(self, images: int) -> None:
        """Count images that are done."""
        self.advance(self.task_ids[0], images)
        task, now = self.tasks[0], self.get_time()
        if self.disable and now - self.last_line > LINE_SECONDS:
            self.last_line = now
            remaining = f", {format_duration(task.time_remaining)} left" if task.time_remaining is not None else ""
            self.console.print(f"{task.description}: {task.completed:.0f} of {task.total:.0f} images{remaining}")


@dataclass(frozen=True)
class Workers:
    """Runs functions on many tasks."""

    count: int  # How many tasks are worked on at a time
    for_small_jobs: bool  # Distribute these too, although starting processes costs more than they save
    progress: ProgressReporter

    def run(
        self, function: Callable[[Task], Outcome], tasks: Sequence[Task], is_small: bool = False
    ) -> Iterator[tuple[Task, Outcome]]:
        """Run the function on every task; yield (task, result) in their order, at most two per worker ahead."""
        if self.count == 1 or (is_small and not self.for_small_jobs):
            yield from ((task, function(task)) for task in tasks)
            return
        parallel = Parallel(self.count, return_as="generator", batch_size=1, max_nbytes=None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A worker stopped|.*tasks? .*(cancelled|not used)")
            yield from zip(tasks, parallel(delayed(function)(task) for task in tasks), strict=True)


@contextmanager
def start_workers(console: Console, processes: int | None = None) -> Iterator[Workers]:
    """Workers on this machine, whose progress the console shows; a `UserError` if one is killed.

    `processes` is their number: 1 is this process itself; by default one per core for large jobs.
    """
    if processes is not None and processes < 1:
        raise UserError(f"{processes} processes cannot work; take 1 or more")
    count = processes or cpu_count()
    try:
        with (
            ProgressReporter(console) as progress,
            parallel_config("loky", initializer=_prepare_process, initargs=(os.getpid(),)),
        ):
            yield Workers(count, processes is not None, progress)
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


def format_duration(seconds: float) -> str:
    """Such as "0.8 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
