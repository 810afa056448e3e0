"""Writes what a run found out: metrics.json, one row per sample, history, pictures, predictions."""

import csv
import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor

from project.data.datamodule import ImageDataModule
from project.files import atomic_path, safe_file_name, write_json
from project.runs.prediction_files import write_files
from project.runs.run_folder import Run
from project.tasks.base import EvaluationResult, Task

log = logging.getLogger("project")


class Recorder(Callback):
    """Writes the results of each validation or test pass into the run folder, in the first process only.

    During training metrics.json and samples/val.csv are those of the best checkpoint so far, which provenance.json
    names under "best"; they are not there if that was not validated, or on a part of the split only.

    Args:
        run: The run folder.
        facts: What identifies the run; stands in metrics.json under "run".
        picture_every: Epochs between pictures during training; the end is always drawn.
        predictions: Write each prediction as TIFF below `predictions/<split>/`.
    """

    def __init__(
        self,
        run: Run,
        facts: dict[str, Any],
        picture_every: int = 5,
        predictions: bool = False,
    ) -> None:
        self.run, self.facts, self.picture_every, self.predictions = run, facts, picture_every, predictions
        self.samples: list[dict[str, Any]] = []
        self.fresh: EvaluationResult | None = None
        self.started = time.monotonic()
        self.rate = 0.0
        self.n_written = 0  # files of predictions
        self.best: tuple[str, float | None] = "", None  # path and score of the best checkpoint
        self.pending: tuple[int, dict[str, Any], EvaluationResult] | None = (
            None  # of the last validation, after so many steps
        )
        self.epoch: int | None = None  # of the checkpoint that is evaluated; during training the trainer's

    def seconds(self) -> float:
        """Since the training began, without the time in which it was stopped."""
        return time.monotonic() - self.started

    def go_on(self, seconds: float) -> None:
        """Count from so many seconds on."""
        self.started = time.monotonic() - seconds

    # Pictures and predictions, batch by batch -------------------------------------------------------------------------

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Keep the samples that are drawn."""
        self._take(trainer, pl_module, "val", outputs, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Keep the samples that are drawn."""
        self._take(trainer, pl_module, "test", outputs, batch)

    def _take(
        self, trainer: Trainer, task: LightningModule, split: str, prediction: Tensor, batch: dict[str, Tensor]
    ) -> None:
        draws = self._draws(trainer)
        if not draws and not self.predictions:
            return
        reader = _data(trainer).reader(split)
        # Evenly spaced over the split, the same in every run.
        n = min(_task(task).n_drawn_samples, len(reader))
        wanted = set(np.linspace(0, len(reader) - 1, n).round().astype(int).tolist())
        for position, index in enumerate(batch["index"].tolist()):
            if draws and index in wanted:
                arrays = {role: batch[role][position].cpu().numpy() for role in batch if role != "index"}
                sample = {"id": reader.ids[index], "prediction": prediction[position].float().cpu().numpy()}
                self.samples.append({**arrays, **sample, "index": index})
            if self.predictions:
                files = _task(task).prediction_files(prediction[position].float().cpu().numpy())
                self._write_predictions(split, reader.ids[index], files)

    def _draws(self, trainer: Trainer) -> bool:
        return not trainer.sanity_checking and (
            not _fitting(trainer) or trainer.current_epoch % self.picture_every == 0
        )

    def _write_predictions(self, split: str, id_: str, files: dict[str, np.ndarray]) -> None:
        about = {"run": self.run.name, "commit": self.facts.get("commit"), "sample": id_}
        self.n_written += len(write_files(self.run.folder / "predictions" / split / safe_file_name(id_), files, about))

    # Files, at the end of a pass --------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what validation found."""
        self._record(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the test found."""
        self._record(trainer, pl_module)

    def _record(self, trainer: Trainer, module: LightningModule) -> None:
        samples, self.samples = self.samples, []
        task = _task(module)
        if trainer.sanity_checking or task.results is None or not trainer.is_global_zero:
            return
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        results = task.results
        epoch = trainer.current_epoch if _fitting(trainer) else self.epoch
        reader = _data(trainer).reader(results.split)
        content = {
            "metrics": {name: value for name, value in results.metrics.items() if np.isfinite(value)},
            "n_samples": len(results.index),
            "undefined": results.undefined,
            "details": results.details,
            "epoch": epoch,
            "split": results.split,
            "run": {**self.facts, "data_hash": reader.content_hash},
        }
        self.fresh = results
        if not _fitting(trainer):
            self._write(trainer, content, results)
        else:
            self.pending = trainer.global_step, content, results
            self.keep_best(trainer)
        if samples:
            self._draw(trainer, task, samples, results.split, epoch)

    def _write(self, trainer: Trainer, content: dict[str, Any], results: EvaluationResult) -> None:
        reader = _data(trainer).reader(results.split)
        write_json(self.run.metrics_file(results.split), content)
        ids = [reader.ids[i] for i in results.index.tolist()]
        groups = [reader.groups[i] for i in results.index.tolist()]
        _write_rows(self._rows_file(results.split), ids, groups, results)

    def _rows_file(self, split: str) -> Path:
        return self.run.folder / "samples" / f"{split}.csv"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The best so far of a training that is resumed is known."""
        self.best = _best(trainer)

    def keep_best(self, trainer: Trainer) -> None:
        """Called after `ModelCheckpoint`: note a new best checkpoint, and write its results."""
        if self.best == _best(trainer) or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.best = _best(trainer)
        record_best(self.run, Path(self.best[0]), trainer.current_epoch, trainer.global_step)
        step, content, results = self.pending or (-1, {}, None)
        whole = results is not None and len(results.index) == len(_data(trainer).reader(results.split))
        if results is not None and whole and step == trainer.global_step:
            self._write(trainer, content, results)
        else:
            for path in (self.run.metrics_file("val"), self._rows_file("val")):
                path.unlink(missing_ok=True)

    def _draw(self, trainer: Trainer, task: Task, samples: list[dict[str, Any]], split: str, epoch: int | None) -> None:
        figures = {split: task.draw(sorted(samples, key=lambda sample: sample["index"]))}
        if task.results and (summary := task.draw_summary(task.results)):
            figures[f"{split}_summary"] = summary
        at = f"_epoch{epoch:04d}" if _fitting(trainer) and epoch is not None else ""
        for name, figure in figures.items():
            path = self.run.folder / "pictures" / f"{name}{at}.png"
            pixels = _rendered(figure)
            with atomic_path(path) as temporary:
                imsave(temporary, pixels, format="png", pil_kwargs={"compress_level": 1})
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")
                elif isinstance(logger, WandbLogger):
                    logger.log_image(key=name, images=[str(path)])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Note the rate: when the epoch ends, the schedule has already gone on."""
        self.rate = max((g["lr"] for optimizer in trainer.optimizers for g in optimizer.param_groups), default=0.0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line per epoch, in history.csv and in the log, with the time that is left."""
        loss = {"train/loss": _task(pl_module).mean_train_loss()}  # asked of all devices
        if not trainer.is_global_zero:
            return
        results, self.fresh = self.fresh, None
        seconds = self.seconds()
        scores = {f"val/{name}": value for name, value in results.metrics.items()} if results else {}
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "seconds": round(seconds, 1)}
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        _append(self.run.folder / "history.csv", {**row, "lr": self.rate, **loss, **scores})
        done, total = trainer.current_epoch + 1, trainer.max_epochs or -1
        left = f"about {_told(seconds / done * (total - done))} left" if total > done else f"took {_told(seconds)}"
        told = {f"val/{name}" for name in ("loss", *list(_task(pl_module).main_metrics)[:2])}
        shown = loss | {name: scores[name] for name in scores if name in told}
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        log.info("epoch %d of %s  %s  %s", done, total if total > 0 else "?", numbers, left)


def _fitting(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING


def _rendered(figure: Figure) -> np.ndarray:
    """A figure as (H, W, 3) uint8, rendered once for all who want it."""
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _best(trainer: Trainer) -> tuple[str, float | None]:
    """Path and score of the best checkpoint; both may stay the same but for the other."""
    rule = trainer.checkpoint_callback
    if not isinstance(rule, ModelCheckpoint):
        return "", None
    return rule.best_model_path, None if rule.best_model_score is None else float(rule.best_model_score)


def record_best(run: Run, path: Path, epoch: int, step: int) -> None:
    """Write down which checkpoint is the best: everything that reads it looks there, and guesses nothing."""
    name = Path(os.path.relpath(os.path.realpath(path), os.path.realpath(run.checkpoints))).as_posix()
    best = {"checkpoint": name, "epoch": epoch, "step": step}
    write_json(run.folder / "provenance.json", run.read("provenance.json") | {"best": best})


def _append(path: Path, row: dict[str, Any]) -> None:
    """Add an epoch to history.csv, in one piece; metrics that no epoch had before become new columns."""
    rows, columns = list[dict[str, Any]](), list[str]()
    if path.exists():
        with path.open(newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows, columns = list(reader), list(reader.fieldnames or ())
    if set(row) <= set(columns):
        with path.open("a", newline="") as file:
            csv.DictWriter(file, columns, restval="").writerow(row)
        return
    columns += [name for name in row if name not in columns]
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows([*rows, row])


def keep_epochs(path: Path, n_epochs: int) -> None:
    """Keep the first epochs of history.csv, in whole lines: those after them will be trained again."""
    if not path.is_file():
        return
    header, *lines = path.read_bytes().decode().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    kept = [line for line in whole if int(line.partition(",")[0]) < n_epochs]
    if not kept:
        path.unlink()
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes("".join([header, *kept]).encode())


def _told(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _data(trainer: Trainer) -> ImageDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ImageDataModule)
    return data


def _task(module: LightningModule) -> Task:
    assert isinstance(module, Task)
    return module


def _write_rows(path: Path, ids: list[str], groups: list[str], results: EvaluationResult) -> None:
    """One row per sample; a score that is not defined is an empty cell."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "group", *results.rows])
        columns = [column.tolist() for column in results.rows.values()]
        for id_, group, *values in zip(ids, groups, *columns, strict=True):
            writer.writerow([id_, group, *("" if value != value else repr(value) for value in values)])
