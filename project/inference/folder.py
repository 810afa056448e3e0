"""Predict all images of a folder: what is done is left alone, what is broken is told at the end."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from rich.console import Console

from project.data.preparation.executors import Reporter
from project.data.raw.samples import Sample, grouped_notes
from project.errors import UserError, bullet_list
from project.files import write_json
from project.inference.inputs import Inputs, find_inputs
from project.inference.model import Model, channel_names
from project.provenance import command, git_state, versions
from project.runs.prediction_files import prediction_path, write_files, write_table

ABOUT, JOURNAL, TABLE = "predictions.json", "images.jsonl", "predictions.csv"
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Settings:
    """How a folder is predicted; results of different settings do not share a folder.

    Attributes:
        tile: Side of tiles in pixels; None cuts images only where memory asks for it.
        tta: Whether to average over the eight symmetries of the square.
        floats: Whether predicted images stay float32; else they take the target's dtype.
        png: Whether classes and objects are written as PNG.
    """

    tile: int | None = None
    tta: bool = False
    floats: bool = False
    png: bool = False


@dataclass
class Outcomes:
    """What became of the images.

    Attributes:
        predicted: How many, now.
        before: How many were there already.
        failed: (id, reason) of those that could not be.
        unlike: (id, range) of those that were predicted, though their values are not those of the training images.
        notes: (id, note) about the files of those that were predicted.
        unread: About the files that are not read.
    """

    predicted: int = 0
    before: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    unlike: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def told(self, output: Path) -> str:
        """For the terminal."""
        lines = [f"{self.predicted} images predicted, {self.before} were there already: {output}"]
        lines += [f"note: {note}" for note in [*self.unread, *grouped_notes(self.notes)]]
        if self.failed:
            lines.append(f"{len(self.failed)} could not be predicted:\n{bullet_list(_line(*f) for f in self.failed)}")
        if self.unlike:
            lines.append(
                f"warning: {len(self.unlike)} have most of their values where the training images have hardly any, so "
                f"do not trust what was predicted:\n{bullet_list(_line(*u) for u in self.unlike)}"
            )
        return "\n".join(lines)


def predict_folder(
    model: Model, folder: Path, output: Path, settings: Settings | None = None, console: Console | None = None
) -> Outcomes:
    """Predict the images of a folder, or of a file, and write the predictions.

    Next to the images stand `predictions.json` (which runs, with which settings), `images.jsonl` (a line for each image
    that is done) and, where there are classes, `predictions.csv`. Called again, it goes on: images that are done, by
    the same runs and from the same file, are left alone.

    Args:
        model: See `project.inference.model.load`.
        folder: Raw images, named as the dataset's were, or in any other way.
        output: A folder of its own; it is made.
        settings: See `Settings`.
        console: Where progress is shown.

    Raises:
        UserError: There is no image, the task gives nothing to write, the output cannot be written, or it holds
            something else.
    """
    settings, console = settings or Settings(), console or Console()
    _check_places(folder, output)
    inputs = find_inputs(folder, model)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with FileLock(output / ".lock", timeout=0):
            _claim(output, model, settings)
            outcomes = _predict(model, inputs, output, settings, console)
    except Timeout:
        raise UserError(f'another process is writing into "{output}"; wait for it, or choose another folder') from None
    except OSError as error:
        raise UserError(f'predictions cannot be written into "{output}": {error}; the same command goes on') from error
    return outcomes


def _predict(model: Model, inputs: Inputs, output: Path, settings: Settings, console: Console) -> Outcomes:
    journal = Journal(output / JOURNAL)
    outcomes = Outcomes(failed=list(inputs.problems), unread=inputs.unread)
    todo = [sample for sample in inputs.samples if not journal.has(sample)]
    outcomes.before = len(inputs.samples) - len(todo)
    targets = channel_names(model.task.channels.get("target"), len(model.task.statistics.get("target", [])))
    with Reporter(console) as reporter:
        reporter.start("Predicting", len(inputs.samples))
        reporter.advance(outcomes.before, earlier=True)
        for sample, reading in _ahead(inputs.read, todo):
            try:
                raw = reading.result()
                estimate = model.estimate(raw, settings.tile, settings.tta)
            except (UserError, RuntimeError, ValueError, MemoryError) as error:
                outcomes.failed.append((sample.id, str(error).strip() or type(error).__name__))
            else:
                task, spread = model.task, estimate.spread
                files = task.prediction_files(estimate.values, spread, rounded=not settings.floats)
                row = task.prediction_row(estimate.values, files, spread)
                if not files and not row:
                    raise UserError(
                        f"{type(model.task).__name__} gives nothing to write: implement its "
                        "`prediction_files` or `prediction_row`"
                    )
                about = {"sample": sample.id, **model.origin, "tta": settings.tta}
                written = write_files(prediction_path(output, sample.id), files, about, targets, settings.png)
                notes = inputs.notes[sample.id]
                journal.add(sample, [str(path.relative_to(output)) for path in written], row, notes)
                outcomes.notes += [(sample.id, note) for note in notes]
                outcomes.predicted += 1
                if told := model.unlike(raw):
                    outcomes.unlike.append((sample.id, told))
            reporter.advance(1)
    if rows := journal.rows(inputs.samples):
        write_table(output / TABLE, rows)
    return outcomes


class Journal:
    """One line of JSON for each image that is done, written after its files.

    Args:
        path: Of the file; a line that was not completed does not count.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.done = path, dict[str, dict[str, Any]]()
        if path.is_file():
            whole, _, rest = path.read_bytes().rpartition(b"\n")
            for line in whole.splitlines():
                try:
                    content = json.loads(line)
                    self.done[content["id"]] = content
                except (ValueError, LookupError, TypeError):
                    continue  # damaged: that image is done again
            if rest:  # the next line must not stand behind it
                path.write_bytes(whole + b"\n" if whole else b"")

    def has(self, sample: Sample) -> bool:
        """Whether the image is done, from files that are as they were, and the results are there."""
        content = self.done.get(sample.id)
        return (
            content is not None
            and content["from"] == _stamps(sample)
            and all((self.path.parent / name).is_file() for name in content["files"])
        )

    def add(self, sample: Sample, files: list[str], row: dict[str, Any], notes: list[str]) -> None:
        """Note that it is done."""
        content = {"id": sample.id, "from": _stamps(sample), "files": files, "row": row, "notes": notes}
        with self.path.open("ab") as file:
            file.write(json.dumps(content).encode() + b"\n")
        self.done[sample.id] = content

    def rows(self, samples: Iterable[Sample]) -> list[dict[str, Any]]:
        """The rows of those of these samples that are done and have any."""
        done = [self.done[sample.id] for sample in samples if sample.id in self.done]
        return [{"id": content["id"], **content["row"]} for content in done if content["row"]]


def _stamps(sample: Sample) -> list[list[Any]]:
    """By which a file is known that was changed."""
    paths = dict.fromkeys(path for ref in sample.images["image"] for path in ref.paths)
    found = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError:  # told when it is read
            return []
        found.append([str(path), stat.st_size, stat.st_mtime_ns])
    return found


def _check_places(folder: Path, output: Path) -> None:
    if not folder.exists():
        raise UserError(f'there is no folder "{folder}" with images')
    inside = folder if folder.is_dir() else folder.parent
    if output.resolve().is_relative_to(inside.resolve()):
        raise UserError(f'"{output}" lies in "{inside}": predictions would be taken for images; choose another folder')
    there = sorted(path.name for path in output.iterdir() if path.name != ".lock") if output.is_dir() else []
    if there and ABOUT not in there:
        raise UserError(f'"{output}" is not empty ({there[0]} lies there); choose a folder of its own')


def _claim(output: Path, model: Model, settings: Settings) -> None:
    """Write down whose folder it is, or check that it is ours.

    Raises:
        UserError: It holds predictions of other runs or settings.
    """
    path, mine = output / ABOUT, {**model.origin, "settings": vars(settings)}
    if not path.is_file():
        about = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "command": command()}
        write_json(path, {**mine, **about, "code": git_state(), "versions": versions()})
        return
    try:
        before = json.loads(path.read_text())
        differ = [name for name in mine if before.get(name) != mine[name]]
    except (ValueError, AttributeError) as error:
        raise UserError(f'"{path}" is damaged ({error}); choose another folder') from error
    if differ:
        told = bullet_list(f"{name}: {json.dumps(before.get(name))}, now {json.dumps(mine[name])}" for name in differ)
        raise UserError(f'"{output}" holds other predictions; choose another folder:\n{told}')


def _ahead(function: Callable[[Item], Outcome], items: Iterable[Item]) -> Iterator[tuple[Item, Future[Outcome]]]:
    """Each item with what the function gives for it; the next one is worked on in the meantime."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[Item, Future[Outcome]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting


def _line(id_: str, reason: str) -> str:
    first = reason.splitlines()[0]
    return first if first.startswith(f"{id_}: ") else f"{id_}: {first}"
