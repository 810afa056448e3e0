"""ResultsWriter: metrics.json, one row per sample, history.csv, figures and predictions of a run."""

import logging
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.image import imsave

from project.data.store import SplitReader
from project.files import atomic_path, safe_file_name, write_json, write_table
from project.metrics.base import EvaluationResult
from project.metrics.conformal import Calibration, calibrate, coverage_columns
from project.pages.render import figure_pixels
from project.runs.prediction_files import write_files
from project.runs.records import MeasuredRun, Metrics
from project.runs.run_folder import Run
from project.tasks.base import Task
from project.training.clock import TrainingClock
from project.training.history import append_epoch

log = logging.getLogger("project")
Samples = list[dict[str, Any]]
FIGURE_EVERY = 5  # epochs, during training; the evaluation of the best checkpoint always has a figure


class ResultsWriter(Checkpoint):
    """Write the results of each validation or test pass into the run folder, in the first process only.

    During training metrics.json and samples/val.csv are those of the best checkpoint so far, which provenance.json
    names under "best"; they are absent if that was not validated, or on a part of the split only. It is a `Checkpoint`
    so that Lightning calls it after the `ModelCheckpoint` that decides which one is the best.

    Args:
        run: The run folder.
        facts: What identifies the run; stored in metrics.json under "run".
        predictions: Write each prediction as TIFF below `predictions/<split>/`.
    """

    def __init__(self, run: Run, facts: dict[str, Any], predictions: bool = False) -> None:
        self.run, self.facts, self.predictions = run, facts, predictions
        self.figure_samples: Samples = []  # of the pass that runs
        self.last: tuple[Samples, EvaluationResult, int] | None = None  # the last validation in training; its step
        # Samples and results of the best checkpoint, where metrics.json was written in its validation.
        self.measured: tuple[Samples, EvaluationResult] | None = None
        self.started = time.monotonic()
        self.lr = 0.0
        self.clock: TrainingClock | None = None
        self.n_prediction_files = 0
        self.best: tuple[str, float | None] = "", None  # path and score of the best checkpoint
        self.last_step = -1  # optimizer steps at the end of the last epoch
        self.epoch: int | None = None  # of the checkpoint that is evaluated; the trainer's during training

    # A validation or test pass ----------------------------------------------------------------------------------------

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: int) -> None:
        """Write predictions, and keep the samples of the figure."""
        if trainer.sanity_checking:
            return
        split = "test" if trainer.testing else "val"
        reader = trainer.datamodule.reader(split)
        # Evenly spaced over the split, the same in every run.
        n = min(pl_module.n_drawn_samples, len(reader))
        shown = set(np.linspace(0, len(reader) - 1, n).round().astype(int).tolist())
        for position, index in enumerate(batch["index"].tolist()):
            if index in shown:
                self.figure_samples.append(sample_arrays(batch, outputs, position, reader))
            if self.predictions:
                values = outputs[position].float().cpu().numpy()
                path = self.run.folder / "predictions" / split / safe_file_name(reader.ids[index])
                about = {"run": self.run.name, "commit": self.facts.get("commit"), "sample": reader.ids[index]}
                self.n_prediction_files += len(write_files(path, pl_module.prediction_files(values), about))

    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the results of a pass; during training only if its checkpoint is the best."""
        samples, self.figure_samples = sorted(self.figure_samples, key=lambda sample: sample["index"]), []
        results = pl_module.results
        if trainer.sanity_checking or results is None or not writes(trainer):
            return
        if not _is_fitting(trainer):
            self._write(trainer, results)
            self._draw(trainer, samples, results)
            return
        self.last = samples, results, trainer.global_step
        self._write_if_best(trainer)
        if trainer.current_epoch % FIGURE_EVERY == 0:
            self._draw(trainer, samples, results, f"_epoch{trainer.current_epoch:04d}")

    on_test_end = on_validation_end

    def _write(self, trainer: Any, results: EvaluationResult) -> None:
        reader = trainer.datamodule.reader(results.split)
        calibration, coverage = self._coverage(trainer.lightning_module, results, reader)
        metrics = results.metrics | {name: float(column.mean()) for name, column in coverage.items()}
        content = Metrics(
            metrics={name: value for name, value in metrics.items() if np.isfinite(value)},
            n_samples=len(results.index),
            undefined=results.undefined,
            details=results.details,
            epoch=trainer.current_epoch if _is_fitting(trainer) else self.epoch,
            split=results.split,
            run=MeasuredRun(**self.facts, data_hash=reader.content_hash),
            calibration=calibration,
        )
        write_json(self.run.metrics_file(results.split), asdict(content))
        columns: dict[str, list[Any]] = {name: column.tolist() for name, column in results.rows.items()}
        columns |= {name: column.tolist() for name, column in coverage.items()}
        rows = []
        for i, index in enumerate(results.index.tolist()):
            values = {name: column[i] for name, column in columns.items()}
            cells = {name: "" if value != value else value for name, value in values.items()}  # undefined: empty
            rows.append({"id": reader.ids[index], "group": reader.groups[index], **cells})
        write_table(self._samples_file(results.split), rows)

    def _coverage(
        self, task: Task, results: EvaluationResult, reader: SplitReader
    ) -> tuple[Calibration | None, dict[str, np.ndarray]]:
        """Calibration of intervals or sets, from a validation; their coverage and width for each image.

        The coverage on validation is that of images whose group was left out.
        """
        errors = task.errors(results)
        if errors is None:
            return None, {}
        if n := int((~np.isfinite(errors.absolute)).any((1, 2)).sum()):
            log.warning("no intervals: the errors of %d images are not finite", n)
            return None, {}
        calibration, half = None, None
        if results.split == "val":
            calibration, half = calibrate(errors, [reader.groups[i] for i in results.index.tolist()])
        elif self.run.metrics_file("val").is_file():  # not where overrides change what is measured
            if earlier := self.run.read_calibration(errors.predicted.shape[-1]):
                half = np.moveaxis(earlier.half_width(np.moveaxis(errors.predicted, -1, 0)), 0, -1)
            else:
                log.warning("%s has no calibrated intervals: run `project eval %s`", self.run.name, self.run.quoted)
        return calibration, {} if half is None else coverage_columns(errors, half)

    def _samples_file(self, split: str) -> Path:
        return self.run.folder / "samples" / f"{split}.csv"

    def _draw(self, trainer: Any, samples: Samples, results: EvaluationResult, suffix: str = "") -> None:
        if not samples:
            return
        figures = {results.split: trainer.lightning_module.draw(samples)}
        if summary := trainer.lightning_module.draw_summary(results):
            figures[f"{results.split}_summary"] = summary
        for name, figure in figures.items():
            path = self.run.folder / "pictures" / f"{name}{suffix}.png"
            pixels = figure_pixels(figure, dpi=110)
            with atomic_path(path) as tmp:
                imsave(tmp, pixels, format="png", pil_kwargs={"compress_level": 1})
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")
                elif isinstance(logger, WandbLogger):
                    logger.log_image(key=name, images=[str(path)])

    # The best checkpoint of a training --------------------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # A run that is resumed has one.
        self.best = best_so_far(trainer)

    def _write_if_best(self, trainer: Any) -> None:
        if self.best == best_so_far(trainer):
            return
        self.best, self.measured = best_so_far(trainer), None
        write_best_checkpoint(self.run, Path(self.best[0]), trainer.current_epoch, trainer.global_step)
        if self.last and self.last[2] == trainer.global_step:
            samples, results, _ = self.last
            if len(results.index) == len(trainer.datamodule.reader(results.split)):
                self._write(trainer, results)
                self.measured = samples, results
                return
        for path in (self.run.metrics_file("val"), self._samples_file("val")):
            path.unlink(missing_ok=True)

    def draw_measured(self, trainer: Any) -> bool:
        """Draw the best checkpoint as its validation saw it; False where it must be evaluated (again)."""
        if self.measured is None or self.best != best_so_far(trainer) or trainer.world_size > 1:
            return False
        self._draw(trainer, *self.measured)
        return True

    # History ----------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        # When the epoch ends, the schedule has already taken its step.
        self.lr = max((g["lr"] for optimizer in trainer.optimizers for g in optimizer.param_groups), default=0.0)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write one line per epoch into history.csv, and one into the log."""
        loss = {"train/loss": pl_module.train_loss.compute().item()}  # asked of all devices
        if not writes(trainer):
            return
        self._write_if_best(trainer)
        results = self.last[1] if self.last and self.last[2] > self.last_step else None
        scores = {f"val/{name}": value for name, value in results.metrics.items()} if results else {}
        self.last_step, seconds = trainer.global_step, time.monotonic() - self.started
        seconds += self.clock.seconds_before if self.clock else 0.0
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "seconds": round(seconds, 1)}
        append_epoch(self.run.folder / "history.csv", {**row, "lr": self.lr, **loss, **scores})
        if trainer.current_epoch and not results:  # one of many short epochs
            return
        done, total = trainer.current_epoch + 1, trainer.max_epochs or -1
        left = self.clock.time_left() if self.clock else None
        left = seconds / done * (total - done) if left is None else left
        time_text = f"about {_duration(left)} left" if left > 0 else f"took {_duration(seconds)}"
        shown = loss | {k: v for k, v in scores.items() if k[4:] in ("loss", *list(pl_module.main_metrics)[:2])}
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        log.info("epoch %d of %s  %s  %s", done, total if total > 0 else "?", numbers, time_text)


def sample_arrays(batch: Any, outputs: Any, position: int, reader: SplitReader) -> dict[str, Any]:
    """One sample of a batch with its prediction, as `Task.draw` takes it."""
    index = int(batch["index"][position])
    arrays = {role: values[position].cpu().numpy() for role, values in batch.items() if role != "index"}
    prediction = outputs[position].float().cpu().numpy()
    return {**arrays, "id": reader.ids[index], "prediction": prediction, "index": index}


def writes(trainer: Any) -> bool:
    """Whether this process writes results: the first one, but not in a trial (`fast_dev_run`)."""
    return trainer.is_global_zero and not trainer.fast_dev_run


def _is_fitting(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING


def best_so_far(trainer: Any) -> tuple[str, float | None]:
    """Path ("" without one) and score of the best checkpoint: either may change alone."""
    path, score = (getattr(trainer.checkpoint_callback, f"best_model_{name}", None) for name in ("path", "score"))
    return path or "", None if score is None else float(score)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def write_best_checkpoint(run: Run, path: Path, epoch: int, step: int) -> None:
    """Record which checkpoint is the best in provenance.json, where everything reads it: nothing guesses it."""
    name = Path(os.path.relpath(os.path.realpath(path), os.path.realpath(run.checkpoints))).as_posix()
    run.update_provenance(best={"checkpoint": name, "epoch": epoch, "step": step})
