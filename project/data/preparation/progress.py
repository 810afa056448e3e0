"""Progress of a long piece of work: a bar on a terminal, else a line every 30 seconds."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 30.0  # between lines where there is no terminal, as in a log file


class ProgressReporter:
    """Shows how many images are done, their rate, and the time that remains. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
        self.progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
        self.task = self.progress.add_task("", rate="")

    def __enter__(self) -> "ProgressReporter":
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.progress.stop()

    def start(self, description: str, total: int) -> None:
        """Begin a piece of work, such as "Reading", on so many images."""
        self.description, self.total = description, total
        self.done = self.n_bytes = self.earlier = 0
        self.began = self.last = time.monotonic()
        self.progress.reset(self.task, description=description, total=total, rate="")

    def advance(self, images: int, n_bytes: int = 0, earlier: bool = False) -> None:
        """Count images that are done, and their bytes; those of an `earlier` run do not count in the rate."""
        self.done, self.n_bytes = self.done + images, self.n_bytes + n_bytes * (not earlier)
        self.earlier += images * earlier
        seconds = max(time.monotonic() - self.began, 1e-3)
        new = self.done - self.earlier
        rate = f"{new / seconds:.3g} images/s" + f", {self.n_bytes / seconds / 1e6:.3g} MB/s" * (self.n_bytes > 0)
        self.progress.update(self.task, completed=self.done, rate=rate)
        if not self.console.is_terminal and time.monotonic() - self.last > LINE_SECONDS:
            self.last = time.monotonic()
            remaining = format_duration(seconds / max(new, 1) * (self.total - self.done))
            self.console.print(f"{self.description}: {self.done} of {self.total} images, {rate}, {remaining} left")


def format_duration(seconds: float) -> str:
    """Such as "0.8 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
