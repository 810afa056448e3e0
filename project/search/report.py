"""What a search has found so far: lines, a table, pictures."""

import csv
import statistics
from pathlib import Path
from typing import Any

import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from optuna.trial import FrozenTrial, TrialState

from project.search.search import DONE, Search
from project.search.space import Choice, Range

FEWEST = 8  # complete trials, below which nothing can be said about what matters
COLOURS = {TrialState.COMPLETE: "tab:blue", TrialState.PRUNED: "tab:grey", TrialState.FAIL: "tab:red"}


def best_trial(search: Search) -> FrozenTrial | None:
    """The best complete trial, the earliest of equals; None if there is none."""
    complete = search.study.get_trials(states=(TrialState.COMPLETE,))
    sign = 1 if search.plan.mode == "min" else -1
    return min(complete, key=lambda trial: (sign * _value(trial), trial.number), default=None)


def own_trial(search: Search) -> FrozenTrial | None:
    """The trial with the experiment's own values, if it is complete."""
    complete = search.study.get_trials(states=(TrialState.COMPLETE,))
    return next((trial for trial in complete if trial.user_attrs.get("own")), None)


def importances(search: Search) -> dict[str, float]:
    """How much each setting matters, in sum 1 (fANOVA); empty where there are too few trials."""
    complete = search.study.get_trials(states=(TrialState.COMPLETE,))
    if len(complete) < FEWEST or len({trial.value for trial in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(search.study, evaluator=evaluator)


def tell_trial(search: Search, trial: FrozenTrial, n: int) -> None:
    """One line for a trial that has ended, with the best so far and the time that is left."""
    metric, best = search.plan.metric, best_trial(search)
    told = {
        TrialState.COMPLETE: f"{metric} {trial.value:.5g}" if trial.value is not None else "",
        TrialState.PRUNED: f"given up after {len(trial.intermediate_values)} epochs",
        TrialState.FAIL: f"failed: {trial.user_attrs.get('reason')}",
    }[trial.state]
    so_far = f"; best: {_value(best):.5g} (trial {best.number})" if best else ""
    took = f", {duration(trial.user_attrs['seconds'])}" if "seconds" in trial.user_attrs else ""
    print(f"trial {trial.number}: {told}{took}{so_far}{_left(search, n)}", flush=True)


def _left(search: Search, n: int) -> str:
    trials = search.study.get_trials(deepcopy=False)
    left = n - sum(trial.state in DONE for trial in trials)
    seconds = [trial.user_attrs["seconds"] for trial in trials if "seconds" in trial.user_attrs]
    return f"; about {duration(left * statistics.fmean(seconds))} left" if left > 0 and seconds else ""


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def summary(search: Search) -> str:
    """The best trials, the experiment's own values, and what matters."""
    plan, own, best = search.plan, own_trial(search), best_trial(search)
    trials = search.study.get_trials(deepcopy=False)
    states = {"complete": TrialState.COMPLETE, "given up": TrialState.PRUNED, "failed": TrialState.FAIL}
    counts = [f"{sum(t.state == state for t in trials)} {name}" for name, state in states.items()]
    lines = [f"\nstudy {search.name}: {', '.join(counts)}"]
    if best is None:
        return lines[0]
    sign = 1 if plan.mode == "min" else -1
    complete = sorted((t for t in trials if t.value is not None), key=lambda t: (sign * _value(t), t.number))
    shown = [*complete[:5], *([own] if own and own.number not in [t.number for t in complete[:5]] else [])]
    for trial in shown:
        values = ", ".join(f"{_short(key, plan)} {value}" for key, value in search.values(trial).items())
        mark = " (own)" if trial.user_attrs.get("own") else ""
        lines.append(f"  trial {trial.number}{mark}: {plan.metric} {trial.value:.5g}  {values}")
    if found := importances(search):
        lines.append("what matters: " + ", ".join(f"{_short(key, plan)} {share:.2f}" for key, share in found.items()))
    return "\n".join(lines)


def keep(search: Search) -> Path:
    """Write trials.csv and the pictures; returns the folder of the pictures."""
    trials, plan = search.study.get_trials(), search.plan
    path = search.folder / "trials.csv"
    beside = path.with_name(".trials.csv.partial")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", plan.metric, *search.distributions, "epochs", "seconds", "reason"])
        for trial in trials:
            values, facts = search.values(trial), trial.user_attrs
            row = [trial.number, trial.state.name.lower(), "" if trial.value is None else trial.value]
            row += [values.get(key, "") for key in search.distributions]
            writer.writerow([*row, len(trial.intermediate_values), facts.get("seconds"), facts.get("reason")])
    beside.replace(path)
    pictures = search.folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for name, figure in {"history": draw_history(search), "importance": draw_importance(search)}.items():
        figure.savefig(pictures / f"{name}.png", dpi=110)
    return pictures


def draw_history(search: Search) -> Figure:
    """Left each trial and the best so far; right the epochs of each."""
    trials, plan = search.study.get_trials(), search.plan
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    better = min if plan.mode == "min" else max
    best = [better(_value(t) for t in complete[: i + 1]) for i in range(len(complete))]
    left.plot([t.number for t in complete], [t.value for t in complete], "o", color="tab:blue", label="complete")
    left.step([t.number for t in complete], best, where="post", color="tab:blue", lw=1, label="best so far")
    given_up = [t for t in trials if t.state == TrialState.PRUNED and t.intermediate_values]
    if given_up:
        ends = [better(t.intermediate_values.values()) for t in given_up]
        left.plot([t.number for t in given_up], ends, "x", color="tab:grey", label="given up")
    if failed := [t.number for t in trials if t.state == TrialState.FAIL]:
        left.plot(
            failed, [0.02] * len(failed), "|", color="tab:red", label="failed", transform=left.get_xaxis_transform()
        )
    if own := own_trial(search):
        left.axhline(_value(own), color="tab:orange", lw=1, ls="--", label="the experiment's own values")
    left.set(xlabel="trial", ylabel=plan.metric)
    left.legend(fontsize=8)
    for trial in trials:
        steps = sorted(trial.intermediate_values)
        values = [trial.intermediate_values[step] for step in steps]
        colour = "tab:orange" if trial.user_attrs.get("own") else COLOURS.get(trial.state, "black")
        right.plot(steps, values, lw=1, color=colour, alpha=0.7)
    right.set(xlabel="epoch", ylabel=plan.metric)
    _focus(left, search, 2)
    _focus(right, search, 6)
    return figure


def draw_importance(search: Search) -> Figure:
    """How much each setting matters, and the value of each trial over each setting."""
    plan, found = search.plan, importances(search)
    keys = sorted(search.distributions, key=lambda key: -found.get(key, 0.0))
    complete = search.study.get_trials(states=(TrialState.COMPLETE,))
    losses = [_value(trial) for trial in complete]
    figure = Figure(figsize=(3 * (len(keys) + 1), 3.5), layout="constrained")
    bars, *plots = figure.subplots(1, len(keys) + 1)
    bars.barh([_short(key, plan) for key in keys][::-1], [found.get(key, 0.0) for key in keys][::-1])
    bars.set(title="importance" if found else f"importance: needs {FEWEST} trials", xlim=(0, 1))
    for key, axes in zip(keys, plots, strict=True):
        setting, values = search.space.settings[key], [search.values(trial)[key] for trial in complete]
        if isinstance(setting, Choice):
            axes.set_xticks(range(len(setting.values)), [str(value).rpartition(".")[2] for value in setting.values])
            values = [setting.values.index(value) for value in values]
            axes.set_xlim(-0.5, len(setting.values) - 0.5)
        elif setting.log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        if isinstance(setting, Range):
            axes.set_xlim(setting.low, setting.high)
        axes.scatter(values, losses, s=18, c=[t.number for t in complete], cmap="Blues", ec="grey", clip_on=False)
        axes.set(xlabel=_short(key, plan), ylabel=plan.metric)
        _focus(axes, search, 2)
    return figure


def _focus(axes: Axes, search: Search, factor: float) -> None:
    """Let trials that are far off not squeeze the others: a picture shows so many times what lies between the best and
    the middle, or the experiment's own values.
    """
    values, own = [_value(t) for t in search.study.get_trials(states=(TrialState.COMPLETE,))], own_trial(search)
    if len(set(values)) < 3:
        return
    sign = 1 if search.plan.mode == "min" else -1
    best = min(values, key=lambda value: sign * value)
    usual = max(abs(value - best) for value in (statistics.median(values), _value(own) if own else best))
    axes.set_ylim(*sorted((best - sign * 0.2 * usual, best + sign * factor * usual)))


def _short(key: str, plan: Any) -> str:
    """The last word of a key, or as many as tell it from the others."""
    parts, others = key.split("."), [other for other in plan.searched if other != key]
    for n in range(1, len(parts) + 1):
        name = ".".join(parts[-n:])
        if not any(other.endswith(f".{name}") for other in others):
            return name
    return key


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value
