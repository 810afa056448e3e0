"""Train one experiment: build, check, record the start, fit, evaluate the best checkpoint, record the end."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback

from project.baselines.base import fit_to_batches
from project.checks.run import check_quickly
from project.errors import UserError, file_failure, format_own_traceback
from project.models.downloads import without_downloads
from project.runs.records import Provenance, read_record
from project.runs.run_folder import Run
from project.runs.untrusted import read_config
from project.training.checkpoints import AverageFromStart
from project.training.clock import TrainingClock
from project.training.evaluate import measure_best
from project.training.graceful_stop import GracefulStop, StopTraining
from project.training.length import set_length
from project.training.lightning_cli import ExperimentCLI
from project.training.loggers import logging_to
from project.training.nonfinite import Diverged, NonFiniteMonitor
from project.training.overrides import shared_configs
from project.training.refusals import refuse_unfit
from project.training.results_writer import ResultsWriter, best_so_far, write_best_checkpoint, writes
from project.training.resume import ResumePoint, ResumeState, plain, resume_point
from project.training.run_record import RunRecord
from project.yaml_files import read_yaml

log = logging.getLogger("project")


def train(
    config: Path,
    overrides: list[str],
    run: Run,
    logger: str | None = None,
    resume: bool = False,
    unchecked: bool = False,
    callbacks: Sequence[Callback] = (),
    started: float | None = None,
) -> Run:
    """Train, then evaluate the best checkpoint on the validation split.

    Args:
        config: The experiment file.
        overrides: `--key value`; they win over the file.
        run: The folder to fill, which is returned.
        logger: See `project.training.loggers`; None is TensorBoard or, on resume, that of the run.
        resume: Resume this run from its last checkpoint, with its own configuration.
        unchecked: Train in spite of errors that the checks before training report.
        callbacks: Added to those of the configuration.
        started: `time.monotonic()` at the start of the command, from which a time budget counts; None is now.

    Raises:
        Interrupted: The training was stopped before its end, and can be resumed.
    """
    begin = time.time()
    with logging_to(run):
        point = resume_point(run) if resume else None
        files = [*shared_configs(read_yaml(config), overrides), f"--config={config}"]
        if point:  # as it was last started
            files = [f"--config={json.dumps(without_downloads(read_config(run.configs[-1])))}"]
            logger = logger or run.read("provenance.json").get("logger")
        writer, stop, record = ResultsWriter(run, {}), GracefulStop(), RunRecord(run, point)
        clock = TrainingClock(time.monotonic() if started is None else started, point.seconds if point else 0.0)
        writer.clock = clock
        callbacks = [NonFiniteMonitor(), AverageFromStart(), ResumeState(), record, stop, clock, writer, *callbacks]
        cli = ExperimentCLI([*files, *overrides], run, logger or "tensorboard", callbacks, training=True)
        cli.datamodule.setup("fit")
        set_length(cli)
        clock.configure(cli)
        checks = _refuse_unsafe(cli, check=not resume, unchecked=unchecked)
        record.describe(cli, overrides, checks)
        provenance = read_record(Provenance, record.facts, run.folder / "provenance.json")
        writer.facts = {"name": run.name, **provenance.identity()}
        status, reason = "interrupted", None
        try:
            if hasattr(cli.model.net, "fit"):
                fit_baseline(cli, record)
            else:
                fit(cli, point, stop, writer)
            status = "finished"
        except BaseException as error:
            reason = str(error) or type(error).__name__
            raise
        finally:
            record.write_end(cli.trainer, time.time() - begin, status, reason)
    return run


def _refuse_unsafe(cli: ExperimentCLI, check: bool, unchecked: bool) -> list[dict[str, Any]]:
    """Refuse what breaks a promise or, at a first start, what the checks find; returns their findings."""
    if hasattr(cli.model.net, "fit"):  # a baseline
        return []
    refuse_unfit(cli.config, cli.model, cli.datamodule, cli.trainer.world_size)
    if not check or not cli.trainer.is_global_zero:
        return []
    return check_quickly(cli.run.experiment, cli.model, cli.datamodule, cli.trainer, unchecked)


def fit(cli: ExperimentCLI, point: ResumePoint | None, stop: GracefulStop, writer: ResultsWriter) -> None:
    """Train from a point to the end, and evaluate the best checkpoint."""
    run, trainer, path = cli.run, cli.trainer, str(point.path) if point and point.path else None
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            log.info("fast_dev_run: training and validation work; nothing of it is kept")
        elif not best_so_far(trainer)[0]:
            raise UserError(f"{run.name} ended before its first validation: it has no best checkpoint and no metrics")
        elif not (cli.config.length.minutes and writer.draw_measured(trainer)):  # a budget has no time for it twice
            measure_best(cli, writer, best_so_far(trainer)[0])
    except Diverged as error:
        raise _with_advice(error, cli) from error
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except (StopTraining, SystemExit) as error:  # SystemExit is Lightning's answer to a second Ctrl-C
        raise stop.interrupted(error, trainer, run) from error
    except Exception as error:
        if not (message := file_failure(error)):
            raise
        message = f"{message}, then resume with\n  make train RESUME={run.quoted}\n{format_own_traceback(error)}"
        raise UserError(message.rstrip()) from error


def _with_advice(error: Diverged, cli: ExperimentCLI) -> UserError:
    """What to do about a training that diverged."""
    try:
        point = resume_point(cli.run)
    except UserError:  # the settings write no last.ckpt
        point = ResumePoint()
    lr = plain(cli.config.get("optimizer")).get("init_args", {}).get("lr", 1e-3)
    good = f"{point.path} (after {point.epoch} epochs)" if point.path else "none"
    return UserError(
        f"{error}\nLast good checkpoint: {good}. To resume from there with a lower learning rate:\n"
        f'  make train RESUME={cli.run.quoted} ARGS="--optimizer.init_args.lr {lr / 10:g}"'
    )


def fit_baseline(cli: ExperimentCLI, record: RunRecord) -> None:
    """Fit on whole training images, then run the same validation as for every network."""
    record.write_start(cli.trainer)
    fit_to_batches(cli.model, cli.datamodule.eval_dataloader("train"))
    cli.trainer.limit_val_batches = 1.0
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    path = cli.run.checkpoints / "best.ckpt"
    cli.trainer.save_checkpoint(path)
    if writes(cli.trainer):
        write_best_checkpoint(cli.run, path, 0, 0)
