"""Hyper-parameter search with Optuna: a study of trainings in this process, shared with others by its journal file."""

import gc
import logging
import math
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from project.command_line import Options
from project.errors import UserError
from project.models.downloads import without_downloads
from project.runs.config_diff import is_below
from project.runs.run_folder import RUNS, Run
from project.search import results
from project.search.space import LOSS, Space, as_overrides
from project.training.evaluate import ONE_PROCESS
from project.training.lightning_cli import temporary_experiment
from project.training.train import train
from project.yaml_files import DEFAULT_CONFIG, read_yaml

STARTUP_TRIALS = 8  # random ones, before TPE knows enough to choose
PRUNE_AFTER, PRUNE_TRIALS = 0.25, 4  # share of the epochs, and complete trials, before one may be pruned
MOST_FAILURES = 5  # in a row: something else is wrong than the values


def tune(file: Path, content: dict[str, Any], space: Space, options: Options) -> None:
    """Search until the study has its trials, then write the best values as an experiment. The same command resumes.

    Several processes, also on several machines that share the folder, can work on one study.

    Args:
        file: Of the experiment.
        content: Of the file.
        space: What is searched.
        options: Of the command `tune`; overrides and logger are of all trials, `trials` counts all of the study.

    Raises:
        UserError: Something does not fit, the study began with other settings, or trial after trial fails.
        KeyboardInterrupt: The search was stopped.
    """
    experiment, overrides, name = options.experiment, options.overrides, options.study or options.experiment
    if name != Path(name).name or name.startswith("."):
        raise UserError(f'--study "{name}" is no name of a folder')
    if options.trials < 1:
        raise UserError(f"--trials is {options.trials}; it is the number of trials of the study in all, 1 or more")
    folder = RUNS / experiment / f"{name}_tune"
    settings = {
        "the experiment file": content,
        str(DEFAULT_CONFIG): read_yaml(DEFAULT_CONFIG) if DEFAULT_CONFIG.is_file() else {},
        "the command line": overrides,
        str(space.path): space.settings,
    }
    study = open_study(folder, settings, lambda: make_plan(experiment, content, overrides, space))
    plan, config = study.user_attrs["plan"], folder / "experiment.yaml"
    if not config.is_file():  # the experiment may be edited during the search
        shutil.copyfile(file, config)
    print(f"study {study.study_name}: {'largest' if plan['mode'] == 'max' else 'smallest'} val/{plan['metric']}")

    def train_values(trial: Trial, values: dict[str, Any]) -> float:
        run = Run(folder / f"{trial.number:04d}")
        return train_trial(trial, plan, run, config, [*overrides, *as_overrides(values)], options.logger or "none")

    try:
        run_trials(study, options.trials, space, options.sampler, train_values)
    finally:
        results.write_trials(study, space, folder / "trials.csv")
    results.write_figures(study, space, folder / "figures")
    print(f"all {len(results.finished(study))} trials: {folder / 'trials.csv'}; figures: {folder / 'figures'}")
    path = file.with_name(f"{name}_tuned.yaml")
    if results.write_best(path, study, content):
        print(f"best values: {path}; train it with\n  make train EXP={shlex.quote(path.stem)}")


def make_plan(experiment: str, content: dict[str, Any], overrides: list[str], space: Space) -> dict[str, Any]:
    """What all trials of a study have in common: `metric` and `mode`, `epochs` (0: unknown), `data_hash` of validation.

    `UserError` if the experiment cannot be built, also with the ends of all ranges, or trials could not be compared.
    """
    content, overrides = without_downloads(content), [*overrides, *ONE_PROCESS]
    with temporary_experiment(experiment, content, overrides) as cli:
        monitor, mode = str(cli.config.checkpoint.monitor), str(cli.config.checkpoint.mode)
        epochs, data_hash = cli.config.trainer.max_epochs, cli.datamodule.reader("val").content_hash
    by_loss = monitor == "val/loss" and any(is_below(key, LOSS) for key in space.settings)
    if by_loss or not monitor.startswith("val/"):
        raise UserError(
            f"trials that differ in {', '.join(space.settings)} cannot be compared by checkpoint.monitor, {monitor}: "
            "set it to another metric of the validation, such as val/mse"
        )
    for values in space.corners():
        try:
            with temporary_experiment(experiment, content, [*overrides, *as_overrides(values)]) as cli:
                cli.datamodule.check_training(1)
        except Exception as error:  # of a network, loss or optimizer of the user
            raise UserError(f"{space.path}: {results.format_values(values)} is impossible: {error}") from error
    epochs = max(epochs, 0) if isinstance(epochs, int) else 0
    return {"metric": monitor.removeprefix("val/"), "mode": mode, "epochs": epochs, "data_hash": data_hash}


def open_study(folder: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> optuna.Study:
    """The study in a folder `runs/<experiment>/<study>_tune`; the first trial of a new one is the experiment itself.

    All trials have the `settings` (name -> value) in common. `make` makes the plan of a new study.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = folder / "journal.log"
    plan = None if journal.is_file() else make()
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    if plan is None:
        study = optuna.load_study(study_name=folder.name, storage=storage)
    else:
        study = optuna.create_study(
            storage=storage,
            study_name=folder.name,
            direction="maximize" if plan["mode"] == "max" else "minimize",
            load_if_exists=True,
        )
        study.enqueue_trial({}, user_attrs={"initial": True}, skip_if_exists=True)
        study.set_user_attr("plan", plan)
        study.set_user_attr("settings", settings)
    for name, value in settings.items():
        if study.user_attrs["settings"].get(name) != value:
            raise UserError(
                f"{name} has changed since the study {folder.name} began; its trials would not be comparable. Begin "
                f"another with --study {folder.name.removesuffix('_tune')}2, or remove {folder}"
            )
    first_epoch = max(math.ceil(PRUNE_AFTER * study.user_attrs["plan"]["epochs"]), 1)
    study.pruner = optuna.pruners.MedianPruner(PRUNE_TRIALS, first_epoch, n_min_trials=2)
    return study


def run_trials(
    study: optuna.Study, n: int, space: Space, sampler: str, train_values: Callable[[Trial, dict[str, Any]], float]
) -> None:
    """Sample values, train and report until the study has `n` trials, those of other processes included.

    Failed and pruned trials count. `train_values` returns the value of a trial; one that raises an error failed.

    Raises:
        UserError: The experiment itself fails, or trial after trial.
        KeyboardInterrupt: A trial was stopped; the next search begins with its values.
    """
    n_failed = 0
    while len(results.finished(study)) < n:
        trial, state, value = study.ask(), TrialState.FAIL, None
        # With one seed a sampler would propose the same values in every process, and again after a restart.
        tpe = optuna.samplers.TPESampler(seed=trial.number, n_startup_trials=STARTUP_TRIALS)
        study.sampler = optuna.samplers.RandomSampler(seed=trial.number) if sampler == "random" else tpe
        is_initial = bool(trial.user_attrs.get("initial"))
        values = {} if is_initial else space.suggest(trial)
        trial.set_user_attr("values", values)
        print(f"trial {trial.number}: {results.format_values(values)}", flush=True)
        try:
            value, state = train_values(trial, values), TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except KeyboardInterrupt as stop:  # without an end, the trial does not count
            study.enqueue_trial(trial.params, user_attrs={"initial": is_initial})
            stop.args = ("the search was stopped; the same command resumes it",)
            raise
        except Exception as error:  # diverged, out of memory, impossible values: other trials may do better
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            trial.set_user_attr("reason", kind + " ".join(str(error).split())[:300])
        study.tell(trial, value, state)
        gc.collect()
        torch.cuda.empty_cache()
        print(results.trial_line(study, trial.number), flush=True)
        n_failed = n_failed + 1 if state == TrialState.FAIL else 0
        if n_failed == MOST_FAILURES or (n_failed and is_initial):
            which = "the experiment itself failed" if is_initial else f"{n_failed} trials in a row failed, the last"
            raise UserError(f"{which} because: {trial.user_attrs['reason']}")


class Pruning(Callback):
    """Reports the metric of each epoch to Optuna, and ends a trial that is worse than the others (TrialPruned)."""

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial, self.name, self.epoch = trial, f"val/{metric}", 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not after the last epoch, when nothing would be saved."""
        epoch, value = trainer.current_epoch + 1, float(trainer.callback_metrics.get(self.name, math.nan))
        is_training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not is_training or epoch == self.epoch or not math.isfinite(value):
            return
        self.epoch = epoch
        self.trial.report(value, epoch)
        if epoch != trainer.max_epochs and self.trial.should_prune():
            raise optuna.TrialPruned


def train_trial(trial: Trial, plan: dict[str, Any], run: Run, config: Path, overrides: list[str], logger: str) -> float:
    """Train with the values of a trial; returns the metric of its best checkpoint."""
    log, quiet = logging.getLogger("project"), logging.NullHandler()  # the terminal has one line per trial
    log.addHandler(quiet)
    try:
        words = ["--trainer.enable_progress_bar=false", *overrides, *ONE_PROCESS]
        train(config, words, run, logger, callbacks=[Pruning(trial, plan["metric"])])
    finally:
        log.removeHandler(quiet)
        if (run.folder / "provenance.json").is_file():
            run.update_provenance(study={"name": trial.study.study_name, "trial": trial.number})
    measured = run.read_metrics()
    if measured is None or plan["metric"] not in measured.metrics:
        raise UserError(f"{plan['metric']} is not defined")
    if measured.run.data_hash != plan["data_hash"]:
        raise UserError("the data has changed since the study began; begin another with --study")
    return float(measured.metrics[plan["metric"]])
