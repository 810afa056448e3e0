"""Hyper-parameter search with Optuna: a study of trainings in this process, shared with others by its journal file."""

import gc
import logging
import math
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState

from project.errors import UserError
from project.runs.run_folder import RUNS, Run
from project.search import results
from project.search.dry_run import Plan, make_plan
from project.search.space import Space, as_overrides
from project.training.train import train
from project.yaml_files import DEFAULT_CONFIG, read_yaml

STARTUP_TRIALS = 8  # random ones, before TPE knows enough to choose
MOST_FAILURES = 5  # in a row: something else is wrong than the values
TIME_LIMIT = 124  # exit status of a training that reached trainer.max_time


def tune(
    experiment: str,
    file: Path,
    content: dict[str, Any],
    overrides: list[str],
    space: Space,
    trials: int = 20,
    sampler: str = "tpe",
    study: str | None = None,
    logger: str = "none",
) -> None:
    """Search until the study has its trials, then write the best values as an experiment. The same command resumes.

    Several processes, also on several machines that share the folder, can work on one study.

    The study is named like the experiment unless `study` is given. `trials` counts all of the study; `overrides` and
    `logger` are of all trials; `sampler` is "tpe" or "random".

    Raises:
        UserError: Something does not fit, the study began with other settings, or trial after trial fails.
        KeyboardInterrupt: The search was stopped.
    """
    name = study or experiment
    if trials < 1:
        raise UserError(f"--trials {trials}: write how many trials the study has in all, such as --trials 20")
    if name != Path(name).name or name.startswith("."):
        raise UserError(f'--study "{name}" is no name of a folder')
    folder = RUNS / experiment / f"{name}_tune"
    settings = {
        "the experiment file": content,
        str(DEFAULT_CONFIG): read_yaml(DEFAULT_CONFIG) if DEFAULT_CONFIG.is_file() else {},
        "the command line": overrides,
        str(space.path): [space.settings, space.metric, space.mode],
    }
    opened = open_study(folder, space, settings, lambda: make_plan(experiment, content, overrides, space))
    plan, config = Plan(**opened.user_attrs["plan"]), folder / "experiment.yaml"
    if not config.is_file():  # the experiment may be edited during the search
        shutil.copyfile(file, config)
    print(f"study {opened.study_name}: {'largest' if plan.mode == 'max' else 'smallest'} val/{plan.metric}")
    print("\n".join(f"  {key}: {values}" for key, values in space.settings.items()))

    def train_values(trial: Trial) -> float:
        return train_trial(trial, plan, space, Run(folder / f"{trial.number:04d}"), config, overrides, logger)

    try:
        run_trials(opened, trials, space, sampler, train_values)
    finally:
        results.write_trials(opened, space, folder / "trials.csv")
    results.write_figures(opened, folder / "figures")
    print(f"{results.summary(opened, space)}\nfigures: {folder / 'figures'}\nall trials: {folder / 'trials.csv'}")
    path = file.with_name(f"{name}_tuned.yaml")
    if results.write_best(path, opened, space, content, plan):
        print(f"best values: {path}; train it with\n  make train EXP={shlex.quote(path.stem)}")


def open_study(folder: Path, space: Space, settings: dict[str, Any], make: Callable[[], Plan]) -> optuna.Study:
    """The study in a folder `runs/<experiment>/<study>_tune`; a new one begins with the experiment's own values.

    All trials have the `settings` (name -> value) in common. `make` makes the plan of a new study.

    Raises:
        UserError: The study began with other settings.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = folder / "journal.log"
    plan = None if journal.is_file() else make()
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    if plan is None:
        study = optuna.load_study(study_name=folder.name, storage=storage)
    else:
        direction = StudyDirection.MAXIMIZE if plan.mode == "max" else StudyDirection.MINIMIZE
        study = optuna.create_study(storage=storage, study_name=folder.name, direction=direction, load_if_exists=True)
        if plan.params is not None:
            study.enqueue_trial(plan.params, user_attrs={"initial": True}, skip_if_exists=True)
        study.set_user_attr("plan", asdict(plan))
        study.set_user_attr("settings", settings)
    for name, value in settings.items():
        if study.user_attrs.get("settings", {}).get(name) != value:
            raise UserError(
                f"{name} has changed since the study {folder.name} began; its trials would not be comparable. Begin "
                f"another with --study {folder.name.removesuffix('_tune')}2, or remove {folder}"
            )
    study.pruner = optuna.pruners.NopPruner()
    if space.prune_after is not None:
        first_epoch = max(math.ceil(space.prune_after * (study.user_attrs["plan"]["epochs"] or 0)), 1)
        study.pruner = optuna.pruners.MedianPruner(space.prune_trials, first_epoch, n_min_trials=2)
    return study


def run_trials(study: optuna.Study, n: int, space: Space, sampler: str, train_values: Callable[[Trial], float]) -> None:
    """Sample values, train and report until the study has `n` trials, those of other processes included.

    Failed and pruned trials count. `train_values` returns the value of a trial; one that raises an error failed.

    Raises:
        UserError: Trial after trial fails.
        KeyboardInterrupt: A trial was stopped; the next search begins with its values.
    """
    n_failed = 0
    while len(results.finished(study)) < n:
        trial, started, state, value = study.ask(), time.monotonic(), TrialState.FAIL, None
        # With one seed a sampler would propose the same values in every process, and again after a restart.
        study.sampler = make_sampler(sampler, trial.number)
        suggest(trial, space.distributions)
        is_initial = bool(trial.user_attrs.get("initial"))
        values = results.format_values(space.decode(trial.params))
        print(f"trial {trial.number}{' (the experiment itself)' * is_initial}: {values}", flush=True)
        try:
            value, state = train_values(trial), TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except KeyboardInterrupt as stop:
            trial.set_user_attr("reason", results.INTERRUPTED)
            study.tell(trial, state=state)
            study.enqueue_trial(trial.params, user_attrs={"initial": is_initial})
            stop.args = ("the search was stopped; the same command resumes it",)
            raise
        except Exception as error:  # diverged, out of memory, impossible values: other trials may do better
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            trial.set_user_attr("reason", kind + " ".join(str(error).split())[:300])
        trial.set_user_attr("seconds", round(time.monotonic() - started, 1))
        study.tell(trial, value, state)
        gc.collect()
        torch.cuda.empty_cache()
        print(results.trial_line(study, trial.number, n), flush=True)
        n_failed = n_failed + 1 if state == TrialState.FAIL else 0
        if n_failed == MOST_FAILURES:
            raise UserError(f"{n_failed} trials in a row failed, the last because: {trial.user_attrs['reason']}")


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler ("tpe" or "random") of one trial, seeded by its number."""
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    if name == "random":
        return optuna.samplers.RandomSampler(seed=number)
    return optuna.samplers.TPESampler(seed=number, n_startup_trials=STARTUP_TRIALS)


def suggest(trial: Trial, distributions: dict[str, Any]) -> None:
    """Sample the parameters of a trial, unless it has them already."""
    for key, d in distributions.items():
        if isinstance(d, CategoricalDistribution):
            trial.suggest_categorical(key, d.choices)
        elif isinstance(d, IntDistribution):
            trial.suggest_int(key, d.low, d.high, step=d.step, log=d.log)
        else:
            trial.suggest_float(key, d.low, d.high, step=d.step, log=d.log)


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


def train_trial(
    trial: Trial, plan: Plan, space: Space, run: Run, config: Path, overrides: list[str], logger: str
) -> float:
    """Train with the values of a trial; returns the metric of its best checkpoint.

    Raises:
        TrialPruned: The trial is worse than the others.
        UserError: The training failed.
    """
    words = ["--trainer.enable_progress_bar=false", *overrides]
    words += [f"--checkpoint.monitor=val/{plan.metric}", f"--checkpoint.mode={plan.mode}"]
    values = space.decode(trial.params)
    if not trial.user_attrs.get("initial"):  # the experiment's own may have more digits
        words += as_overrides(values)
    log, quiet = logging.getLogger("project"), logging.NullHandler()  # the terminal has one line per trial
    log.addHandler(quiet)
    try:
        train(config, words, run, logger, callbacks=[Pruning(trial, plan.metric)])
    except KeyboardInterrupt as stop:
        if getattr(stop, "status", None) != TIME_LIMIT:
            raise
    finally:
        log.removeHandler(quiet)
        if (run.folder / "provenance.json").is_file():
            run.update_provenance(study={"name": trial.study.study_name, "trial": trial.number, "values": values})
    measured = run.read_metrics()
    if measured is None or plan.metric not in measured.metrics:
        raise UserError(f"{plan.metric} is not defined")
    if measured.run.data_hash != plan.data["val"]:
        raise UserError("the data has changed since the study began; begin another with --study")
    return float(measured.metrics[plan.metric])
