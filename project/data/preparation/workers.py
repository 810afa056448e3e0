"""Parallel work in this process or in worker processes (joblib)."""

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
