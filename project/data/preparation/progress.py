"""Progress of a long piece of work: a bar on a terminal, else a line every 30 seconds."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 30.0  # between lines where there is no terminal, as in a log file


class ProgressReporter:
    """Shows how many images are done, and the time that remains. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        self.progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
        self.task = self.progress.add_task("")

    def __enter__(self) -> "ProgressReporter":
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
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
        if not self.console.is_terminal and time.monotonic() - self.last > LINE_SECONDS:
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
