"""`python -m project tune`: checks, tells the budget, searches, and writes the winner as an experiment."""

import shlex
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from project.errors import UserError, did_you_mean
from project.runs.run_folder import RUNS
from project.search import report
from project.search.best_config import write_winner
from project.search.dry_run import Plan, make_plan
from project.search.search import DONE, SAMPLERS, Search
from project.search.space import Space
from project.training.config_keys import check_logger
from project.training.interruption import Stopped


def tune(
    experiment: str,
    file: Path,
    content: dict[str, Any],
    typed: list[str],
    space: Space,
    trials: str = "20",
    sampler: str = "tpe",
    study: str | None = None,
    logger: str = "none",
) -> None:
    """Search for good settings until the study has its trials; a study that there is goes on.

    Args:
        experiment: Its name.
        file: The experiment file.
        content: What is in it.
        typed: Arguments that all trials have, `--key value`.
        space: What is searched.
        trials: Of the study in all, as typed.
        sampler: "tpe" or "random".
        study: Name of the study; by default that of the experiment.
        logger: Of the trials, see `project.training.loggers`.

    Raises:
        UserError: Something does not fit, the study was begun with other settings, or trial after trial fails.
        Stopped: The search was left, and can go on.
    """
    if not trials.isdecimal() or int(trials) < 1:
        raise UserError(f"TRIALS={trials}: how many trials the study shall have in all, such as TRIALS=20")
    if sampler not in SAMPLERS:
        raise UserError(
            f'there is no sampler "{sampler}".{did_you_mean(sampler, SAMPLERS)} Known: {", ".join(SAMPLERS)}'
        )
    check_logger(logger)
    name, n = study or experiment, int(trials)
    if name != Path(name).name or name.startswith("."):
        raise UserError(f'STUDY="{name}" is no name of a folder')
    folder = RUNS / experiment / f"{name}_tune"
    base = folder / "experiment.yaml"  # that of the trials: the file may be edited meanwhile
    search = Search(folder, space, sampler, [str(base), logger, *typed])

    def begin() -> Plan:
        print("checking the ends of all ranges ...", flush=True)
        plan = make_plan(experiment, content, typed, space)
        shutil.copyfile(file, base)
        return plan

    try:
        search.open(begin)
    except UserError:
        _forget(folder)
        raise
    if changed := search.plan.difference(content, typed, space):
        raise UserError(
            f"{changed} is not as it was when the study {search.name} began, so that its trials could not be compared; "
            f"begin another with STUDY={name}2, or remove {folder}"
        )
    print(_budget(search, n), flush=True)
    try:
        search.run(n, lambda search, trial: _tell(search, trial, n))
    except Stopped:
        print(report.summary(search))
        raise
    pictures = report.keep(search)
    print(report.summary(search))
    print(f"pictures: {pictures}\nall trials: {folder / 'trials.csv'}")
    print(_write(search, file, base, name, n))


def _forget(folder: Path) -> None:
    """Leave no study behind that never began."""
    if not (folder / "experiment.yaml").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # there are runs of it
            folder.parent.rmdir()


def _tell(search: Search, trial: FrozenTrial, n: int) -> None:
    report.tell_trial(search, trial, n)
    report.keep(search)


def _budget(search: Search, n: int) -> str:
    """What it will take, as far as it can be said."""
    plan, trials = search.plan, search.study.get_trials(deepcopy=False)
    took = [t.user_attrs["seconds"] for t in trials if t.state == TrialState.COMPLETE and "seconds" in t.user_attrs]
    left = max(n - sum(trial.state in DONE for trial in trials), 0)
    done = f" ({n - left} are done)" if left < n else ""
    seconds = max(took) if took else plan.seconds
    of = f" of at most {plan.epochs} epochs" if plan.epochs else ""
    if seconds is None:
        time = "how long they take cannot be said"
    else:
        start = "" if took else " and its start"
        time = f"each about {report.duration(seconds)}{start}, {report.duration(left * seconds)} in all, less what is"
        time += " given up"
    free = shutil.disk_usage(search.folder).free / 1e6
    short = f"; only {free / 1000:.1f} GB are free" if left * plan.megabytes > 0.8 * free else ""
    goal = "smallest" if plan.mode == "min" else "largest"
    lines = [f"{key}: {told}" for key, told in plan.searched.items()]
    return (
        f"study {search.name}, {search.sampler.name}: the {goal} val/{plan.metric}\n  "
        + "\n  ".join(lines)
        + f"\n{n} trials{of}{done}: {time}; checkpoints up to {left * plan.megabytes / 1000:.1f} GB{short}"
    )


def _write(search: Search, file: Path, base: Path, name: str, n: int) -> str:
    """The winner as an experiment; what to say of it."""
    plan, best, own = search.plan, report.best_trial(search), report.own_trial(search)
    if best is None:
        return "no trial was complete: there is no winner"
    if best.user_attrs.get("own"):
        return f"nothing better was found than the experiment's own values (val/{plan.metric} {best.value:.5g})"
    before = search.space.decode(own.params) if own else {}
    values = search.values(best)
    changes = {key: value for key, value in values.items() if key not in before or before[key] != value}
    if search.space.metric is not None:
        changes |= {"checkpoint.monitor": f"val/{plan.metric}", "checkpoint.mode": plan.mode}
    compared = f"; the experiment's own values gave {own.value:.6g}" if own and own.value is not None else ""
    more = [f"Searched in {search.space.path} with {search.sampler.name}, {n} trials."]
    more += [f"All trials had {' '.join(plan.typed)}"] if plan.typed else []
    more += ["The value was chosen on the validation split, as the best of many: expect somewhat less on new images."]
    heading = [f"{plan.experiment}, trial {best.number}, val/{plan.metric} {best.value:.6g}{compared}.", *more]
    path = file.with_name(f"{name}_tuned.yaml")
    write_winner(path, base.read_text(encoding="utf-8"), changes, heading, search.name)
    return f"winner: {path}; train it with\n  make train EXP={shlex.quote(path.stem)}"
