"""Train one experiment."""

import logging
import math
import os
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.seed import isolate_rng

from project.checks.run import check_quickly
from project.errors import UserError, format_own_traceback, write_failure
from project.files import write_json
from project.provenance import command, git_state
from project.runs import provenance
from project.runs.records import Provenance, read_record
from project.runs.run_folder import Run, now
from project.tasks.base import Task
from project.training import resume
from project.training.checkpoints import AverageFromStart, BackgroundCheckpoints, KeepLast, NotWritten
from project.training.divergence import Diverged, RestartOnDivergence, Watch
from project.training.interruption import TIME_LIMIT, Interruption, Leave, Stopped, requeue
from project.training.lightning_cli import ExperimentCLI
from project.training.lightning_options import check_length
from project.training.logs import logging_to
from project.training.recorder import Recorder, keep_epochs, record_best
from project.training.start import Start, StartRecord, check_modes, monitors
from project.yaml_files import DEFAULT_CONFIG

log = logging.getLogger("project")


def train(
    config: Path,
    typed: list[str],
    run: Run,
    logger: str | None = None,
    going_on: bool = False,
    unchecked: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train, then evaluate the best checkpoint on the validation split.

    Args:
        config: The experiment file.
        typed: Further arguments, `--key value`; they win over the file.
        run: The folder to fill.
        logger: See `project.training.loggers`; None is TensorBoard or, when going on, what the run has.
        going_on: Whether to go on with this run from its last checkpoint, with its own configuration.
        unchecked: Whether to train in spite of what the checks at the beginning find.
        callbacks: Further ones.

    Raises:
        UserError: The configuration or the data do not fit, the run cannot go on, or the training diverged.
        Stopped: The training was left before its end, and can go on.
    """
    with logging_to(run):
        while _train(config, typed, run, logger, going_on, unchecked, callbacks):
            going_on = True  # it diverged, and tries again with lower rates
    return run


def _train(
    config: Path,
    typed: list[str],
    run: Run,
    logger: str | None,
    going_on: bool,
    unchecked: bool,
    more_callbacks: Sequence[Callback],
) -> bool:
    """As `train`; returns whether to start again."""
    facts = run.read("provenance.json") if going_on else {}
    if facts.get("baseline"):
        raise UserError(
            f"{run.name} is a baseline, which is fitted at once; name the training that shall go on, such as\n"
            "  make train EXP=unet_mse RESUME=latest"
        )
    logger = logger or facts.get("logger") or "tensorboard"
    position, files = resume.Position(), [f"--config={path}" for path in (DEFAULT_CONFIG, config) if path.is_file()]
    if going_on:
        position, files = resume.position_of(run, facts, typed), resume.arguments(run)
    recorder, interruption, start = Recorder(run, {}), Interruption(), Start()
    factor = math.prod(restart["factor"] for restart in facts.get("restarts", []))
    continuation = resume.Continuation(recorder.seconds, recorder.go_on, factor)
    keep_last = KeepLast(leaving=interruption.leaving, best_known=recorder.keep_best)
    with resume.same_wandb_run(facts):
        callbacks = [recorder, keep_last, continuation, interruption, *more_callbacks]
        cli = ExperimentCLI([*files, *typed], run, logger, callbacks, training=True)
    keep_last.configure(cli.as_given.checkpoint, cli.trainer.checkpoint_callback)
    _complete_callbacks(cli, continuation, interruption, start)
    started = time.time()
    # What does not fit is said before anything is written.
    cli.datamodule.setup("fit")
    is_baseline = hasattr(cli.model.net, "fit")
    if not is_baseline:
        cli.datamodule.check_training(cli.trainer.world_size)
        n_samples = len(cli.datamodule.datasets["train"]) // cli.trainer.world_size
        check_length(cli.config.trainer, n_samples // cli.datamodule.batch_size)
        _check(cli)
    verdicts: dict[str, Any] = {}
    if cli.trainer.is_global_zero and not (is_baseline or going_on):
        verdicts = {"checks": check_quickly(run.experiment, cli.model, cli.datamodule, cli.trainer, unchecked)}
    start.record = _resumed(cli, run, position) if going_on else _started(cli, run, logger, typed, verdicts)
    origin = read_record(Provenance, start.record.facts, run.folder / "provenance.json")
    recorder.facts = {"name": run.name, **origin.identity()}
    if is_baseline:
        _fit_baseline(cli, run, start.record)
    else:
        if type(cli.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            cli.trainer.strategy.checkpoint_io = BackgroundCheckpoints()
        try:
            _fit(cli, run, position, interruption, recorder)
        except BaseException as error:
            _note(cli, start.record, started, "interrupted", str(error) or type(error).__name__)
            if isinstance(error, Diverged):
                return _starts_again(cli, run, error)
            raise
    _note(cli, start.record, started, "finished")
    if cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
        log.info("fast_dev_run: training and validation work; nothing of it is kept")
    return False


def _complete_callbacks(
    cli: ExperimentCLI, continuation: resume.Continuation, interruption: Interruption, start: Start
) -> None:
    """What they have to know of the configuration."""
    trainer = cli.trainer
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    # These come before those of the configuration; `start` after `continuation`, which puts metrics back.
    callbacks.insert(0, AverageFromStart())
    callbacks.insert(0, Watch(each=bool(cli.config.trainer.detect_anomaly)))
    callbacks.remove(continuation)
    callbacks[2:2] = [continuation, start]
    start.monitors = {key: metric for key, metric, _ in monitors(cli.config)}
    continuation.optimizer = resume.plain(cli.config.get("optimizer"))
    # Lightning's timer ends an epoch early, as if it were complete. That is right only where the time is all that says
    # how long to train.
    if trainer.max_epochs not in (None, -1) or trainer.max_steps != -1:
        timer = next((callback for callback in callbacks if type(callback) is Timer), None)
        if timer is not None:
            callbacks.remove(timer)
            interruption.limit = timer


def _fit(
    cli: ExperimentCLI, run: Run, position: resume.Position, interruption: Interruption, recorder: Recorder
) -> None:
    """Train, and evaluate the best checkpoint.

    Raises:
        UserError: Something does not fit, or cannot be written.
        Diverged: The loss is not finite.
        Stopped: The training was left.
    """
    trainer, path = cli.trainer, position.path and str(position.path)
    on = f"make train RESUME={run.quoted}"
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True)
        if not trainer.fast_dev_run and not _best_path(cli):  # type: ignore[attr-defined]
            raise UserError(f"{run.name} ended before its first validation: it has no best checkpoint and no metrics")
        # There is still the best to evaluate: that can wait, if somebody asked for an end.
        if interruption.leaving() and interruption.status != TIME_LIMIT:
            raise Leave
        _evaluate_best(cli, recorder)
    except MisconfigurationException as error:  # such as a metric that is monitored and does not exist
        raise UserError(str(error)) from error
    except NotWritten as error:
        raise UserError(f"{error}, then go on with\n  {on}") from error
    except (Leave, SystemExit) as error:  # SystemExit is Lightning's answer to a second Ctrl-C
        raise _stopped(cli, run, interruption, error) from error
    except Exception as error:
        if not (message := write_failure(error)):
            raise
        raise UserError(f"{message}, then go on with\n  {on}") from error


def _stopped(cli: ExperimentCLI, run: Run, interruption: Interruption, error: BaseException) -> Stopped:
    done, n = cli.trainer.fit_loop.batch_idx + 1, cli.trainer.num_training_batches
    at = f"in epoch {cli.trainer.current_epoch + 1}, after batch {done} of {n}"
    if isinstance(error, SystemExit):
        told, status = f"stopped at once, {at}: the steps since the last checkpoint are lost", 130
        if cli.trainer.state.fn != TrainerFn.FITTING:
            told = "stopped in the evaluation of the best checkpoint"
        elif interruption.reason is None:  # a signal before the first step
            told, status = "stopped before the first step", 143 if isinstance(error, SIGTERMException) else 130
    elif interruption.saved:
        told, status = f"stopped by {interruption.reason} {at}", interruption.status
    elif done < n:
        told, status = f"stopped by {interruption.reason} {at}, which will begin anew", interruption.status
    else:
        told, status = f"stopped by {interruption.reason} after {cli.trainer.current_epoch} epochs", interruption.status
    if cli.trainer.is_global_zero and interruption.requeue:
        requeue()
    if run.config.is_file():
        told += f"; go on with\n  make train RESUME={run.quoted}"
    # Lightning would kill the first process as soon as another ended with a status.
    return Stopped(told, status if cli.trainer.is_global_zero else 0)


def _starts_again(cli: ExperimentCLI, run: Run, error: Diverged) -> bool:
    """Whether to go back to the last checkpoint with lower rates, which is then written down.

    Raises:
        UserError: No; what to do.
    """
    facts = run.read("provenance.json")
    restarts = facts.get("restarts", [])
    callbacks: list[Callback] = cli.trainer.callbacks  # type: ignore[attr-defined]
    rule = next((callback for callback in callbacks if isinstance(callback, RestartOnDivergence)), None)
    position = resume.last_position(run)
    if rule is None or len(restarts) >= rule.most or cli.trainer.world_size > 1:
        tried = f"\n  {len(restarts)} restarts with lower rates did not help" if restarts else ""
        good = f"{position.path} (after {position.epoch} epochs)" if position.path else "none"
        where = run.quoted
        rate = resume.plain(cli.config.get("optimizer")).get("init_args", {}).get("lr", 1e-3)
        raise UserError(
            f"{error}{tried}\n  last good checkpoint: {good}\nTo go on from there with a lower rate:\n"
            f'  make train RESUME={where} ARGS="--optimizer.init_args.lr {rate / 10:g}"'
        ) from error
    log.warning("%s", error)
    log.warning("going back %s, with rates times %g", position.told(), rule.factor)
    facts["restarts"] = [*restarts, {**error.facts, "factor": rule.factor, "back_to_epoch": position.epoch}]
    write_json(run.folder / "provenance.json", facts)
    return True


def _note(cli: ExperimentCLI, record: StartRecord, started: float, status: str, reason: str | None = None) -> None:
    """Write down how it ended, if it started."""
    run, facts = record.run, record.run.read("provenance.json")
    if not cli.trainer.is_global_zero or not record.is_written(facts):
        return
    seconds = round(facts.pop("seconds", 0.0) + time.time() - started, 1)
    facts |= {"status": status, "seconds": seconds}
    facts.pop("reason", None)
    with suppress(OSError):  # the disk is full, perhaps; what went wrong is told by itself
        write_json(run.folder / "provenance.json", facts | ({"reason": reason} if reason else {}))


def _resumed(cli: ExperimentCLI, run: Run, position: resume.Position) -> StartRecord:
    """Check that it is the same training; what to write when it is resumed, and what to forget of the steps lost.

    Raises:
        UserError: Data or configuration are others, or nothing is left to train.
    """
    facts = run.read("provenance.json")
    if facts.get("data_hash") != _data_hashes(cli):
        raise UserError(
            f'"{cli.datamodule.folder}" has other content than when {run.name} was begun: name the old data with '
            "`--data.root`, or start a new run"
        )
    changes, files = resume.changed_config(run, cli)
    resume.check_limits(run, cli.trainer, facts.get("status") == "finished", position)
    start = {"time": now(), "command": command(), **git_state()}
    start |= {"epoch": position.epoch, "batch": position.batches, "changed": changes}
    facts.pop("stopped_early", None)
    facts |= {"status": "started", "resumed": [*facts.get("resumed", []), start]}
    lines = [f"going on with {run.folder} {position.told()}", *(f"resuming with changed: {line}" for line in changes)]
    return StartRecord(run, facts, files, lines, partial(_forget_lost_steps, run, position))


def _forget_lost_steps(run: Run, position: resume.Position, trainer: Trainer, facts: dict[str, Any]) -> None:
    keep_epochs(run.folder / "history.csv", position.epoch)
    resume.hide_lost_steps(trainer, position.step if position.path else -1)
    facts["resumed"][-1]["changes"] = provenance.write_changes(run, f".resume-{len(facts['resumed'])}")


def _data_hashes(cli: ExperimentCLI) -> dict[str, str]:
    return {split: cli.datamodule.reader(split).content_hash for split in ("train", "val")}


def _started(cli: ExperimentCLI, run: Run, logger: str, overrides: list[str], verdicts: dict[str, Any]) -> StartRecord:
    """What is known beforehand, to write when training starts: a run that dies has its configuration and origin."""
    seed, text = cli.config.get("seed_everything"), cli.text()
    facts = provenance.describe_start(seed if isinstance(seed, int) else None, _data_hashes(cli), text)
    parameters = sum(p.numel() for p in cli.model.net.parameters())
    facts |= {
        "experiment": run.experiment,
        "dataset": cli.datamodule.dataset,
        "parameters": parameters,
        "oracle": bool(getattr(cli.model.net, "oracle", False)),
        "baseline": hasattr(cli.model.net, "fit"),
        "task": cli.model.kind,
        "leading": cli.model.main_metrics,
        "scoring": cli.model.metric_settings,
        "pretrained": cli.model.loaded_weights,
        "fold": cli.datamodule.fold,
        # What the folds have in common; the hashes of the data are those of the fold.
        "all_folds_hash": cli.datamodule.whole.content_hash,
        "logger": logger,
        "wandb": next((each.version for each in cli.trainer.loggers if isinstance(each, WandbLogger)), None),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "overrides": overrides,
        "started": now(),
        "status": "started",
        **verdicts,
    }
    n_train, n_val = (len(cli.datamodule.reader(split)) for split in ("train", "val"))
    lines = [
        f"run folder: {run.folder}",
        f"{run.experiment} on {cli.datamodule.dataset}: {n_train} training and {n_val} validation images, "
        f"{parameters / 1e6:.2f} million parameters",
    ]
    return StartRecord(run, facts, {run.config.name: text}, lines, partial(_keep_changes, run))


def _keep_changes(run: Run, trainer: Trainer, facts: dict[str, Any]) -> None:
    provenance.write_changes(run)


def _fit_baseline(cli: ExperimentCLI, run: Run, record: StartRecord) -> None:
    """Fit on whole training images, then go through the same validation as every network."""
    cli.model.fit_baseline(iter(cli.datamodule.eval_dataloader("train")))
    keep = cli.trainer.is_global_zero and not cli.trainer.fast_dev_run  # type: ignore[attr-defined]
    if keep:
        record.write(cli.trainer)
    cli.trainer.limit_val_batches = 1.0
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    cli.trainer.save_checkpoint(run.checkpoints / "best.ckpt")
    if keep:
        record_best(run, run.checkpoints / "best.ckpt", 0, 0)


def _check(cli: ExperimentCLI) -> None:
    """Refuse what would fail, or be wrong without a word, only after a while.

    Raises:
        UserError: There is no optimizer, the monitored metric is kept at its worst, freezing does not go with the
            strategy, the pretrained weights have seen the validation images, or the network does not take the data.
    """
    task, config = cli.model, cli.config
    _check_fold_of_weights(cli)
    if config.get("optimizer") is None and type(task).configure_optimizers is Task.configure_optimizers:
        raise UserError(
            "the experiment names no optimizer; add\n"
            "  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}"
        )
    check_modes(config, task)
    freezes = task.finetuning is not None and task.finetuning.freeze_epochs != 0
    if freezes and cli.trainer.world_size > 1 and "find_unused" not in str(config.trainer.strategy):
        raise UserError("freezing on several devices needs --trainer.strategy ddp_find_unused_parameters_true")
    _try_step(cli)


def _try_step(cli: ExperimentCLI) -> None:
    """Predict one sample, and compute its loss, as training does; nothing is changed by it.

    Raises:
        UserError: The network or the loss fails, or the loss is no single number.
    """
    task, batch = cli.model, cli.datamodule.datasets["train"][0, 0]
    task.eval()
    what = f"the network fails on an image of {tuple(batch['image'].shape[1:])} (channels, height, width)"
    try:
        with torch.no_grad(), isolate_rng(include_cuda=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of `log`, outside of a training
            task(batch["image"])
            what = f"the loss {type(task.loss).__name__} fails"
            loss = task.training_step(batch, 0)
    except UserError:
        raise
    except Exception as error:
        own = format_own_traceback(error)
        if not own and not isinstance(error, RuntimeError | ValueError | TypeError):
            raise
        raise UserError(f"{what}: {error}" + (f"\n{own}" if own else "")) from error
    finally:
        task.train()
    loss = loss.get("loss") if isinstance(loss, dict) else loss
    if isinstance(loss, torch.Tensor) and loss.ndim:
        raise UserError(
            f"the loss {type(task.loss).__name__} gives numbers of shape {tuple(loss.shape)}, not one for the batch: "
            "take their mean (torch's losses do with reduction: mean)"
        )


def _check_fold_of_weights(cli: ExperimentCLI) -> None:
    """Refuse weights of a run that was trained on the images of this fold."""
    spec, fold = cli.config.model.init_args.get("pretrained"), cli.datamodule.fold
    if spec is None or fold is None:
        return
    path = Path(spec.file).expanduser()
    files = [folder / "config.yaml" for folder in (path, *path.parents[:2])]  # a run folder, or a checkpoint in it
    found = [yaml.safe_load(file.read_text())["data"] for file in files if file.is_file()]
    if found and found[0]["dataset"] == cli.datamodule.dataset and found[0].get("fold") != fold:
        raise UserError(
            f"pretrained: {spec.file} was trained with fold {found[0].get('fold')} for validation, so that it has seen "
            f"the validation images of fold {fold}; train that experiment with FOLD={fold} first"
        )


def _best_path(cli: ExperimentCLI) -> str:
    rule = cli.trainer.checkpoint_callback
    return rule.best_model_path if isinstance(rule, ModelCheckpoint) else ""


def _evaluate_best(cli: ExperimentCLI, recorder: Recorder) -> None:
    """On the whole split, even if the training validated on a part of it."""
    best = _best_path(cli)
    if not best or cli.trainer.interrupted:
        return
    cli.trainer.strategy.barrier()  # the first process may still be writing it when the others are done
    recorder.epoch = checkpoint_epoch(Path(best))
    cli.trainer.limit_val_batches = 1.0
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=best, weights_only=True, verbose=False)


def checkpoint_epoch(path: Path) -> int:
    """The epoch, from 0, after which a checkpoint was written."""
    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"])
