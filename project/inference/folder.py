"""Predict all images of a folder, with restart: finished images are left alone, failures are reported at the end."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.progress import track

from project.data.raw.samples import Sample, grouped_notes
from project.errors import UserError, bullet_list
from project.files import write_json, write_table
from project.inference.inputs import Inputs, find_inputs
from project.inference.model import NOT_VALID, Model
from project.provenance import command, git_state, versions
from project.runs.prediction_files import prediction_path, write_files

Row = dict[str, Any]
ABOUT, JOURNAL, TABLE = "predictions.json", "images.jsonl", "predictions.csv"


@dataclass(frozen=True)
class Settings:
    """How a folder is predicted; results of different settings do not share a folder."""

    tile: int | None = None  # side of tiles in pixels; by default 1024 for images above 2048
    tta: bool = False  # whether to average over the eight symmetries of the square
    floats: bool = False  # whether predicted images stay float32; otherwise they have the target's dtype
    intervals: bool = False  # whether also the ends of intervals are written as images; tables always have them


@dataclass
class FolderReport:
    """What happened to the images of a folder."""

    predicted: int = 0  # now
    before: int = 0  # finished earlier
    failed: list[tuple[str, str]] = field(default_factory=list)  # (id, reason)
    shifted: list[tuple[str, str]] = field(default_factory=list)  # (id, range): values unlike the training images
    notes: list[tuple[str, str]] = field(default_factory=list)  # (id, note) about the files of predicted images
    unread: list[str] = field(default_factory=list)  # about files that are not read
    no_intervals: str = ""  # why a table has no intervals or sets

    def describe(self, output: Path) -> str:
        """Text for the terminal."""
        lines = [f"{self.predicted} images predicted, {self.before} were there already: {output}"]
        remarks = [self.no_intervals] if self.no_intervals else []
        lines += [f"note: {note}" for note in [*self.unread, *grouped_notes(self.notes), *remarks]]
        if self.failed:
            failures = bullet_list(_line(*failure) for failure in self.failed)
            lines.append(f"{len(self.failed)} could not be predicted:\n{failures}")
        if self.shifted:
            shifts = bullet_list(_line(*shift) for shift in self.shifted)
            lines.append(
                f"warning: {len(self.shifted)} have most of their values outside the range of the training images; do "
                f"not trust their predictions, nor the coverage of their intervals:\n{shifts}"
            )
        return "\n".join(lines)


def predict_folder(model: Model, folder: Path, output: Path, settings: Settings) -> FolderReport:
    """Predict the images of a folder, or one file, and write the predictions into a separate folder.

    The output also has `predictions.json` (runs and settings), `images.jsonl` (one line for each finished image) and,
    for tasks with classes or numbers, `predictions.csv`. Called again, it continues: images that were finished by the
    same runs from the same file are left alone.

    Raises:
        UserError: There is no image, the output cannot be written, or it holds something else.
    """
    parent = folder.parent if folder.is_file() else folder
    if output.resolve().is_relative_to(parent.resolve()):
        raise UserError(f'"{output}" is in "{parent}": predictions would be taken for images; choose another folder')
    names = sorted(path.name for path in output.iterdir() if path.name != ".lock") if output.is_dir() else []
    if names and ABOUT not in names:
        raise UserError(f'"{output}" is not empty (it has {names[0]}); choose a separate folder')
    if settings.intervals:
        model.check_calibration("image", "value", "label", tta=settings.tta)
    inputs = find_inputs(folder, model)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with FileLock(output / ".lock", timeout=0):
            _claim(output, model, settings)
            return _predict(model, inputs, output, settings)
    except Timeout:
        raise UserError(f'another process is writing into "{output}"; wait for it, or choose another folder') from None
    except OSError as error:
        raise UserError(
            f'predictions cannot be written into "{output}": {error}; the same command continues'
        ) from error


def _claim(output: Path, model: Model, settings: Settings) -> None:
    """Record runs and settings in the output folder, or refuse it if it holds predictions of others."""
    path, origin = output / ABOUT, {**model.origin, "settings": asdict(settings)}
    if (settings.intervals or not model.dense) and model.calibration:
        origin["calibration"] = asdict(model.calibration)
    if not path.is_file():
        about = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "command": command()}
        write_json(path, {**origin, **about, "code": git_state(), "versions": versions()})
        return
    try:
        before = json.loads(path.read_text())
        changed = [
            f"{k}: {json.dumps(before.get(k))}, now {json.dumps(v)}" for k, v in origin.items() if before.get(k) != v
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f'"{path}" is damaged ({error}); choose another folder') from error
    if changed:
        raise UserError(f'"{output}" holds other predictions; choose another folder:\n{bullet_list(changed)}')


def _predict(model: Model, inputs: Inputs, output: Path, settings: Settings) -> FolderReport:
    journal, task = Journal(output / JOURNAL), model.task
    todo = [sample for sample in inputs.samples if not journal.has(sample)]
    report = FolderReport(before=len(inputs.samples) - len(todo), failed=list(inputs.problems), unread=inputs.unread)
    with_intervals = task.has_errors and (settings.intervals or not model.dense)
    if with_intervals:
        try:
            model.check_calibration("image", "value", "label", tta=settings.tta)
        except UserError as error:
            with_intervals, report.no_intervals = False, str(error)
    for sample, reading in track(_read_ahead(inputs, todo), "Predicting", len(todo), transient=True):
        try:
            raw = reading.result()
            estimate = model.estimate(raw, settings.tile, settings.tta)
        except (UserError, RuntimeError, ValueError, MemoryError) as error:
            report.failed.append((sample.id, str(error).strip() or type(error).__name__))
            continue
        files = task.prediction_files(estimate.values, estimate.spread, rounded=not settings.floats)
        row = task.prediction_row(estimate.values, files, estimate.spread)
        shift = model.describe_shift(raw)
        if with_intervals:
            _add_interval(model, estimate.values, settings, shift, files, row)
        if not files and not row:
            name = type(task).__name__
            raise UserError(f"{name} has nothing to write: implement its `prediction_files` or `prediction_row`")
        about = {"sample": sample.id, **model.origin, "tta": settings.tta} | ({"remark": NOT_VALID} if shift else {})
        written = write_files(prediction_path(output, sample.id), files, about, task.parts)
        journal.add(sample, [str(path.relative_to(output)) for path in written], row, inputs.notes[sample.id], shift)
        report.predicted += 1
    finished = [journal.finished[sample.id] for sample in inputs.samples if sample.id in journal.finished]
    report.notes = [(entry["id"], note) for entry in finished for note in entry["notes"]]
    report.shifted = [(entry["id"], entry["shift"]) for entry in finished if entry.get("shift")]
    if rows := [{"id": entry["id"], **entry["row"]} for entry in finished if entry["row"]]:
        write_table(output / TABLE, rows)
    return report


def _add_interval(
    model: Model, values: np.ndarray, settings: Settings, shift: str | None, files: dict[str, np.ndarray], row: Row
) -> None:
    """Add the interval or set of a prediction to its files, or to its row of predictions.csv."""
    kind, parts = model.task.target_kind, model.task.parts
    if kind == "image":
        files["_low"], files["_high"] = model.interval_of(values, rounded=not settings.floats)
    elif kind == "value":
        for name, ends in zip(("low", "high"), model.interval_of(values), strict=True):
            row |= {f"{name}/{part}": float(end) for part, end in zip(parts, ends, strict=True)}
    else:
        row["set"] = ";".join(model.set_of(values))
    if row:
        row["remark"] = NOT_VALID if shift else ""


class Journal:
    """One line of JSON for each finished image, written after its files; an incomplete last line is ignored."""

    def __init__(self, path: Path) -> None:
        self.path, self.finished = path, dict[str, dict[str, Any]]()
        content = path.read_bytes() if path.is_file() else b""
        for line in content.splitlines():
            with suppress(ValueError, LookupError, TypeError):  # damaged: that image is predicted again
                entry = json.loads(line)
                self.finished[entry["id"]] = entry
        if content and not content.endswith(b"\n"):  # the next line must not be appended to an incomplete one
            path.write_bytes(content + b"\n")

    def has(self, sample: Sample) -> bool:
        """Whether the image is finished, its source files have not changed and its results exist."""
        entry = self.finished.get(sample.id, {"from": None})
        return entry["from"] == _stamps(sample) and all((self.path.parent / name).is_file() for name in entry["files"])

    def add(self, sample: Sample, files: list[str], row: Row, notes: list[str], shift: str | None) -> None:
        """Record a finished image."""
        about = {"from": _stamps(sample), "files": files, "row": row, "notes": notes, "shift": shift}
        self.finished[sample.id] = {"id": sample.id, **about}
        with self.path.open("ab") as file:
            file.write(json.dumps(self.finished[sample.id]).encode() + b"\n")


def _stamps(sample: Sample) -> list[list[Any]]:
    """Path, size and time of each source file, by which a change is noticed; without missing files."""
    files = dict.fromkeys(path for ref in sample.images["image"] for path in ref.paths if path.exists())
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _read_ahead(inputs: Inputs, samples: list[Sample]) -> Iterator[tuple[Sample, Future[np.ndarray]]]:
    """Each sample with its raw image; the next one is read in the meantime."""
    with ThreadPoolExecutor(1) as pool:
        following = [pool.submit(inputs.read, sample) for sample in samples[:1]]
        for i, sample in enumerate(samples):
            following += [pool.submit(inputs.read, further) for further in samples[i + 1 : i + 2]]
            yield sample, following.pop(0)


def _line(id_: str, reason: str) -> str:
    first = reason.splitlines()[0]
    return first if first.startswith(f"{id_}: ") else f"{id_}: {first}"
