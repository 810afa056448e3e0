"""Writes what a run found out: metrics.json, one row per sample, history, pictures, predictions."""

import csv
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from project.data.datamodule import ImageDataModule
from project.experiment.run import Run, write_json
from project.tasks.base import Results, Task

log = logging.getLogger("project")
SHOWN = ("val/loss", "val/mse", "val/pearson")


class Recorder(Callback):
    """Writes the results of each validation or test pass into the run folder, in the first process only.

    Args:
        run: The run folder.
        facts: What identifies the run; stands in metrics.json under "run".
        n_pictures: Samples that are drawn, evenly spaced over the split, the same in every run.
        picture_every: Epochs between pictures during training; the end is always drawn.
        predictions: Write each prediction as TIFF below `predictions/<split>/`.
    """

    def __init__(
        self,
        run: Run,
        facts: dict[str, Any],
        n_pictures: int = 4,
        picture_every: int = 5,
        predictions: bool = False,
    ) -> None:
        self.run, self.facts, self.n_pictures, self.picture_every = run, facts, n_pictures, picture_every
        self.predictions = predictions
        self.samples: list[dict[str, Any]] = []
        self.fresh: Results | None = None
        self.started = time.monotonic()
        self.epoch: int | None = None  # of the checkpoint that is evaluated; during training the trainer's

    # Pictures and predictions, batch by batch -------------------------------------------------------------------------

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Keep the samples that are drawn."""
        self._take(trainer, "val", outputs, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Keep the samples that are drawn."""
        self._take(trainer, "test", outputs, batch)

    def _take(self, trainer: Trainer, split: str, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        draws = self._draws(trainer)
        if not draws and not self.predictions:
            return
        reader = _data(trainer).reader(split)
        wanted = set(np.linspace(0, len(reader) - 1, min(self.n_pictures, len(reader))).round().astype(int).tolist())
        for position, index in enumerate(batch["index"].tolist()):
            if draws and index in wanted:
                arrays = {role: batch[role][position].cpu().numpy() for role in batch if role != "index"}
                sample = {"id": reader.ids[index], "prediction": prediction[position].float().cpu().numpy()}
                self.samples.append({**arrays, **sample, "index": index})
            if self.predictions:
                self._write_prediction(split, reader.ids[index], prediction[position].float().cpu().numpy())

    def _draws(self, trainer: Trainer) -> bool:
        return not trainer.sanity_checking and (
            not _fitting(trainer) or trainer.current_epoch % self.picture_every == 0
        )

    def _write_prediction(self, split: str, id_: str, prediction: np.ndarray) -> None:
        path = self.run.folder / "predictions" / split / f"{id_.replace('/', '_')}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, prediction, photometric="minisblack")

    # Files, at the end of a pass --------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what validation found."""
        self._record(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the test found."""
        self._record(trainer, pl_module)

    def _record(self, trainer: Trainer, task: LightningModule) -> None:
        samples, self.samples = self.samples, []
        assert isinstance(task, Task)
        if trainer.sanity_checking or task.results is None or not trainer.is_global_zero:
            return
        results = task.results
        epoch = trainer.current_epoch if _fitting(trainer) else self.epoch
        reader = _data(trainer).reader(results.split)
        content = {
            "metrics": {name: value for name, value in results.metrics.items() if np.isfinite(value)},
            "n_samples": len(results.index),
            "undefined": results.undefined,
            "epoch": epoch,
            "split": results.split,
            "run": {**self.facts, "data_hash": reader.content_hash},
        }
        write_json(self.run.metrics_file(results.split), content)
        ids = [reader.ids[i] for i in results.index.tolist()]
        groups = [reader.groups[i] for i in results.index.tolist()]
        _write_rows(self.run.folder / "samples" / f"{results.split}.csv", ids, groups, results)
        self.fresh = results
        if samples:
            self._draw(trainer, task, samples, results.split, epoch)

    def _draw(self, trainer: Trainer, task: Task, samples: list[dict[str, Any]], split: str, epoch: int | None) -> None:
        figure = task.draw(sorted(samples, key=lambda sample: sample["index"]))
        name = f"{split}_epoch{epoch:04d}.png" if _fitting(trainer) and epoch is not None else f"{split}.png"
        path = self.run.folder / "pictures" / name
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=110)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(split, figure, trainer.global_step)
            elif isinstance(logger, WandbLogger):
                logger.log_image(key=split, images=[str(path)])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line per epoch, in history.csv and in the log, with the time that is left."""
        assert isinstance(pl_module, Task)
        if not trainer.is_global_zero:
            return
        results, self.fresh = self.fresh, None
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        seconds = time.monotonic() - self.started
        loss = {"train/loss": float(trainer.callback_metrics["train/loss"])}
        scores = {f"val/{name}": value for name, value in results.metrics.items()} if results else {}
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "seconds": round(seconds, 1)}
        _append(self.run.folder / "history.csv", {**row, "lr": max(rates, default=0.0), **loss, **scores})
        done, total = trainer.current_epoch + 1, trainer.max_epochs or -1
        left = f"about {_told(seconds / done * (total - done))} left" if total > done else f"took {_told(seconds)}"
        shown = loss | {name: scores[name] for name in scores if name in SHOWN}
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        log.info("epoch %d of %s  %s  %s", done, total if total > 0 else "?", numbers, left)


def _fitting(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING


def _append(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a CSV file; its columns are those of the first row."""
    columns = list(row)
    if path.exists():
        with path.open(newline="") as file:
            columns = next(csv.reader(file))
    else:
        path.write_text(",".join(columns) + "\n")
    with path.open("a", newline="") as file:
        csv.DictWriter(file, columns, restval="", extrasaction="ignore").writerow(row)


def _told(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _data(trainer: Trainer) -> ImageDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ImageDataModule)
    return data


def _write_rows(path: Path, ids: list[str], groups: list[str], results: Results) -> None:
    """One row per sample; a score that is not defined is an empty cell."""
    path.parent.mkdir(exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "group", *results.rows])
        columns = [column.tolist() for column in results.rows.values()]
        for id_, group, *values in zip(ids, groups, *columns, strict=True):
            writer.writerow([id_, group, *("" if value != value else repr(value) for value in values)])
    beside.replace(path)
