"""The search: asks for values, trains with them, tells what came out. Its state is a file that processes share."""

import csv
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from project.errors import UserError
from project.files import write_json
from project.runs.run_folder import Run
from project.search.dry_run import Plan
from project.search.space import Space
from project.search.trial import lock_of
from project.training.interruption import Stopped

SAMPLERS = ("tpe", "random")
STARTUP = 8  # trials that TPE draws at random, before it knows enough to choose
FAILURES = 5  # in a row, after which something else is wrong than the values
POLL = 0.2  # seconds between looks at a training
PATIENCE = 300.0  # seconds in which a training that is told to stop may finish its step and write its checkpoint
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
# A trial is a training of its own, also where the search was started by a launcher.
NOT_INHERITED = ("SLURM_", "TORCHELASTIC_", "LOCAL_RANK", "RANK", "WORLD_SIZE", "GROUP_RANK", "PROJECT_RUN_FOLDER")


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: with a value, given up, failed for a reason, or (with neither state) stopped."""

    state: TrialState | None
    value: float | None = None
    reason: str | None = None


class Seeded(BaseSampler):
    """Draws from (seed, trial) and what is known then, whichever process asks, and however often it was started.

    A sampler with a seed of its own would draw the first values again in each process.
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name, self.seed = name, seed
        self.inner: BaseSampler = RandomSampler()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """A new sampler for each trial."""
        seed = int(np.random.SeedSequence([self.seed, trial.number]).generate_state(1)[0])
        tpe = self.name == "tpe"
        self.inner = TPESampler(seed=seed, n_startup_trials=STARTUP) if tpe else RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler of this trial."""
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler of this trial."""
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler of this trial."""
        return self.inner.sample_independent(study, trial, param_name, param_distribution)


class Search:
    """A study in its folder, `runs/<experiment>/<study>_tune/`, one process of perhaps several.

    Args:
        folder: Of the study; the run of trial 7 is `<folder>/0007`.
        space: What is searched.
        sampler: "tpe" or "random".
        words: Of `project.search.trial`, without the run folder: see `Search.command`.

    Attributes:
        plan: Known as soon as the study exists.
    """

    def __init__(self, folder: Path, space: Space, sampler: str = "tpe", words: list[str] | None = None) -> None:
        self.folder, self.space, self.words = folder, space, words or []
        self.name = folder.name
        self.distributions = {key: setting.distribution() for key, setting in space.settings.items()}
        self.sampler = Seeded(sampler)
        self.stopped_by: int | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def open(self, make: Callable[[], Plan]) -> None:
        """Load the study, or begin it with a plan; its first trial has the experiment's own values."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with self._alone():
            storage = JournalStorage(JournalFileBackend(str(self.folder / "journal.log")))
            known = self.name in optuna.study.get_all_study_names(storage)
            plan = None if known else make()
            what: dict[str, Any] = {"storage": storage, "study_name": self.name, "sampler": self.sampler}
            if plan is None:
                self.study = optuna.load_study(**what)
            else:
                best = StudyDirection.MAXIMIZE if plan.mode == "max" else StudyDirection.MINIMIZE
                self.study = optuna.create_study(**what, direction=best)
                if plan.own:
                    self.study.enqueue_trial(plan.own, user_attrs={"own": True})
                self.study.set_user_attr("plan", plan.as_json())
        if "plan" not in self.study.user_attrs:
            raise UserError(f'the study in "{self.folder}" was not begun properly; remove that folder')
        self.plan = Plan(**self.study.user_attrs["plan"])
        after = 0 if self.space.prune_after is None else math.ceil(self.space.prune_after * (self.plan.epochs or 0))
        never = self.space.prune_after is None
        self.study.pruner = (
            optuna.pruners.NopPruner()
            if never
            else optuna.pruners.MedianPruner(self.space.prune_trials, max(after, 1), n_min_trials=2)
        )

    def run(self, n: int, tell: Callable[["Search", FrozenTrial], None]) -> None:
        """Train until the study has `n` trials, those of other processes included.

        Args:
            n: Trials in all, also those that failed or were given up.
            tell: Called after each trial of this process.

        Raises:
            UserError: Trial after trial fails, or what is monitored is not there.
            Stopped: By a signal; the trial goes on when the search does.
        """
        failed = 0
        with self._signals():
            while self.stopped_by is None and (taken := self._next(n)) is not None:
                trial, again, claim = taken
                try:
                    outcome = self._train(trial, again)
                    if outcome.state is None:
                        break
                    if outcome.reason:
                        trial.set_user_attr("reason", outcome.reason)
                    self.study.tell(trial, outcome.value, outcome.state)
                finally:
                    claim.release()
                tell(self, self.study.trials[trial.number])
                failed = failed + 1 if outcome.state == TrialState.FAIL else 0
                if failed == FAILURES:
                    raise UserError(
                        f"{failed} trials in a row failed, the last because: {outcome.reason}\n"
                        f"See {self.run_of(trial.number).folder / 'output.txt'}"
                    )
        if self.stopped_by is not None:
            name, status = signal.Signals(self.stopped_by).name, 128 + self.stopped_by
            raise Stopped(f"stopped by {name}; the same command goes on where it was", status)

    def run_of(self, number: int) -> Run:
        """The run of a trial."""
        return Run(self.folder / f"{number:04d}")

    def values(self, trial: FrozenTrial) -> dict[str, Any]:
        """The values of a trial, as it was trained with them."""
        return self.space.decode(trial.params)

    def command(self, trial: FrozenTrial) -> list[str]:
        """The process that trains a trial; the experiment's own values, which may have more digits, are not typed."""
        config, logger, *typed = self.words
        metric = [f"--checkpoint.monitor=val/{self.plan.metric}", f"--checkpoint.mode={self.plan.mode}"]
        values = [] if trial.user_attrs.get("own") else self.space.words(self.values(trial))
        place = [config, str(self.run_of(trial.number).folder), logger]
        return [sys.executable, "-m", "project.search.trial", "tune", *place, *typed, *metric, *values]

    # One trial --------------------------------------------------------------------------------------------------------

    def _next(self, n: int) -> tuple[Trial, bool, FileLock] | None:
        """A trial to train, whether it was begun before, and the lock that says that this process is at it."""
        with self._alone():
            trials = self.study.get_trials(deepcopy=False)
            for frozen in (trial for trial in trials[:n] if trial.state == TrialState.RUNNING):
                if (claim := self._claim(frozen.number)) is None:
                    continue
                # It may have ended between the two looks.
                if self.study.get_trials(deepcopy=False)[frozen.number].state == TrialState.RUNNING:
                    if frozen.params.keys() == self.distributions.keys():
                        return Trial(self.study, frozen._trial_id), True, claim
                    self.study.tell(frozen.number, state=TrialState.FAIL)
                claim.release()
            if sum(trial.state != TrialState.WAITING for trial in trials) >= n:
                return None
            trial = self.study.ask(self.distributions)
            claim = self._claim(trial.number)
            assert claim is not None
            return trial, False, claim

    def _claim(self, number: int) -> FileLock | None:
        """The lock of a trial; None if it is in the hands of a living process, of a search or a training."""
        training = lock_of(self.run_of(number).folder)
        claim = FileLock(training.lock_file.removesuffix(".training") + ".search", timeout=0)
        try:
            claim.acquire()
        except Timeout:
            return None
        try:
            training.acquire()
            training.release()
        except Timeout:  # its search was killed, it was not
            claim.release()
            return None
        return claim

    def _train(self, trial: Trial, again: bool) -> Outcome:
        frozen = self.study.trials[trial.number]
        run, told = self.run_of(trial.number), ", ".join(f"{k} {v}" for k, v in self.values(frozen).items())
        own = " (the experiment's own)" if frozen.user_attrs.get("own") else ""
        print(f"trial {trial.number}{', going on' if again else ''}{own}: {told}", flush=True)
        facts = run.read("provenance.json")
        if again and facts.get("status") == "finished":
            self._report(trial)
            return self._outcome(run, 0)
        command = self.command(frozen)
        if again and facts.get("data_hash"):
            typed = [word for word in self.words[2:] if word == "--unchecked"]
            command = [*command[: command.index("tune") + 4], "--resume", *typed]
        run.folder.mkdir(parents=True, exist_ok=True)
        started = time.time()
        with (run.folder / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=_environment(), start_new_session=True
            )
            try:
                pruned = self._watch(self.process, trial)
            finally:
                if (status := self.process.poll()) is None:
                    self.process.kill()
                self.process = None
        trial.set_user_attr("seconds", trial.user_attrs.get("seconds", 0.0) + round(time.time() - started, 1))
        self._report(trial)
        self._sign(run, trial, frozen)
        if status and self.stopped_by is not None:
            return Outcome(None)
        return Outcome(TrialState.PRUNED) if status and pruned else self._outcome(run, status or 0)

    def _watch(self, process: subprocess.Popen[bytes], trial: Trial) -> bool:
        """Wait until a training ends, and end it if it is not promising; returns whether it was not."""
        pruned, deadline = False, math.inf
        while process.poll() is None:
            if not pruned and self.stopped_by is None and self._report(trial):
                pruned = True
                process.terminate()
            if (pruned or self.stopped_by is not None) and deadline == math.inf:
                deadline = time.monotonic() + PATIENCE
            if time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL)
        return pruned

    def _report(self, trial: Trial) -> bool:
        """Tell Optuna of the epochs that are new in history.csv; returns whether to give the trial up.

        After its last epoch there is nothing to be saved.
        """
        column, rows = f"val/{self.plan.metric}", _history(self.run_of(trial.number).folder / "history.csv")
        if not rows:
            return False
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        new = {int(row["epoch"]) + 1: float(row.get(column) or "nan") for row in rows}
        new = {done: value for done, value in new.items() if done not in known and math.isfinite(value)}
        for done, value in new.items():
            trial.report(value, done)
        return bool(new) and max(new) != self.plan.epochs and trial.should_prune()

    def _outcome(self, run: Run, status: int) -> Outcome:
        if status < 0:
            memory = "; out of memory?" if status == -signal.SIGKILL else ""
            return Outcome(TrialState.FAIL, reason=f"killed by {signal.Signals(-status).name}{memory}")
        if status:
            return Outcome(TrialState.FAIL, reason=_last_error(run.folder / "output.txt"))
        if run.read("provenance.json").get("data_hash") != self.plan.data:
            raise UserError(f"the data is not what it was when the study {self.name} began; take another STUDY=")
        value = run.read("metrics.json").get("metrics", {}).get(self.plan.metric)
        if value is None:
            return Outcome(TrialState.FAIL, reason=f"{self.plan.metric} is not defined")
        return Outcome(TrialState.COMPLETE, float(value))

    def _sign(self, run: Run, trial: Trial, frozen: FrozenTrial) -> None:
        """Let the run name its study and trial."""
        if facts := run.read("provenance.json"):
            study = {"name": self.name, "trial": trial.number, "values": self.values(frozen)}
            write_json(run.folder / "provenance.json", facts | {"study": study})

    # Several processes, and signals -----------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        (self.folder / ".locks").mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".locks" / "study"):
            yield

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM are handed to the training, which ends after its step; the second ends it at once."""

        def note(number: int, frame: FrameType | None) -> None:
            if self.process is not None:
                if self.stopped_by is None:
                    self.process.terminate()
                else:
                    os.killpg(self.process.pid, signal.SIGKILL)
            self.stopped_by = number

        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}


def _history(path: Path) -> list[dict[str, str]]:
    """The epochs of a training so far; a line that is being written is left out."""
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return list(csv.DictReader(line for line in lines if line.endswith("\n")))


def _last_error(path: Path) -> str:
    """What a process said last: its error, else its last line."""
    text = path.read_text(errors="replace").strip() if path.is_file() else ""
    _, found, error = text.rpartition("error: ")
    lines = error.splitlines() if found else text.splitlines()[-1:]
    return " ".join(line.strip() for line in lines)[:500] or "it ended without a word"
