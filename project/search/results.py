"""Results of a search: printed lines, trials.csv, Optuna's figures, and the best values as an experiment."""

import copy
import csv
import statistics
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from matplotlib import pyplot
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

from project.errors import UserError
from project.files import atomic_path
from project.search.dry_run import Plan
from project.search.space import Space

FEWEST = 4  # complete trials, below which Optuna's figures show nothing
INTERRUPTED = "interrupted"  # the reason of a trial whose values are tried again
MARK = "# Best values of the study "


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that are complete, pruned or failed."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    trials = study.get_trials(deepcopy=False, states=states)
    return [trial for trial in trials if trial.user_attrs.get("reason") != INTERRUPTED]


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials, the best first, the earliest of equal ones."""
    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def format_values(values: Mapping[str, Any]) -> str:
    """Such as "optimizer.init_args.lr 0.003, data.batch_size 8"."""
    return ", ".join(f"{key} {value}" for key, value in values.items())


def trial_line(study: optuna.Study, number: int, n: int) -> str:
    """How a trial ended, the best so far, and the time that is left."""
    trial, best, done = study.get_trials(deepcopy=False)[number], ranked(study)[:1], finished(study)
    outcome = {
        TrialState.COMPLETE: f"{trial.value:.5g}" if trial.value is not None else "",
        TrialState.PRUNED: f"pruned after {len(trial.intermediate_values)} epochs",
        TrialState.FAIL: f"failed: {trial.user_attrs.get('reason')}",
    }[trial.state]
    seconds = statistics.fmean(t.user_attrs["seconds"] for t in done if "seconds" in t.user_attrs)
    left = f"; about {(n - len(done)) * seconds / 60:.1f} min left" if n > len(done) else ""
    return f"  {outcome}{''.join(f'; best: {t.value:.5g} (trial {t.number})' for t in best)}{left}"


def summary(study: optuna.Study, space: Space) -> str:
    """Numbers of trials, the best five and the experiment's own values."""
    names = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    counts = [f"{sum(t.state == state for t in finished(study))} {name}" for name, state in names.items()]
    lines = [f"\nstudy {study.study_name}: {', '.join(counts)}"]
    for rank, trial in enumerate(ranked(study)):
        is_initial = trial.user_attrs.get("initial")
        if rank < 5 or is_initial:
            mark, values = " (the experiment itself)" * bool(is_initial), format_values(space.decode(trial.params))
            lines.append(f"  trial {trial.number}{mark}: {trial.value:.5g}  {values}")
    return "\n".join(lines)


def write_trials(study: optuna.Study, space: Space, path: Path) -> None:
    """trials.csv: values, metric, epochs, seconds, and why a trial failed."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "value", *space.distributions, "epochs", "seconds", "reason"])
        for trial in study.get_trials(deepcopy=False):
            values, facts = space.decode(trial.params), trial.user_attrs
            row = [trial.number, trial.state.name.lower(), "" if trial.value is None else trial.value]
            row += [values.get(key, "") for key in space.distributions]
            writer.writerow([*row, len(trial.intermediate_values), facts.get("seconds"), facts.get("reason")])


def write_figures(study: optuna.Study, folder: Path) -> None:
    """Optuna's figures of the history, the epochs, the values and their importances, as PNG."""
    folder.mkdir(exist_ok=True)
    draw: dict[str, Callable[[optuna.Study], Any]] = {
        "history": plots.plot_optimization_history,
        "epochs": plots.plot_intermediate_values,
    }
    if len({trial.value for trial in ranked(study)}) >= FEWEST:
        draw |= {"values": plots.plot_slice, "importances": plots.plot_param_importances}
    for name, plot in draw.items():
        # Optuna calls them experimental, and sets a style for all later figures.
        with warnings.catch_warnings(), pyplot.rc_context():
            warnings.simplefilter("ignore")
            axes = plot(study)
        figure = np.ravel(axes)[0].figure
        figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
        pyplot.close(figure)


def write_best(path: Path, study: optuna.Study, space: Space, content: dict[str, Any], plan: Plan) -> bool:
    """Write the experiment (`content`) with the best values; returns whether they are not its own.

    Raises:
        UserError: There is another file of that name.
    """
    trials = ranked(study)
    initial = next((trial for trial in trials if trial.user_attrs.get("initial")), None)
    if not trials or trials[0] is initial:
        print("no trial is better than the experiment's own values" if initial else "no trial is complete")
        return False
    mark = f'{MARK}"{study.study_name}"'
    if path.is_file() and not path.read_text(encoding="utf-8").startswith(mark):
        raise UserError(
            f'"{path}" exists and is not from the study "{study.study_name}"; rename it, then run this again'
        )
    best, before = trials[0], space.decode(initial.params) if initial else {}
    changes = {key: value for key, value in space.decode(best.params).items() if before.get(key) != value}
    if space.metric:
        changes |= {"checkpoint.monitor": f"val/{plan.metric}", "checkpoint.mode": plan.mode}
    compared = f"; the experiment's own values gave {initial.value:.6g}" if initial else ""
    lines = [
        f"{mark}: trial {best.number} of {len(finished(study))}, val/{plan.metric} {best.value:.6g}{compared}.",
        "# It is the best of many on the validation split: expect somewhat less on new images.",
        *(f"# {key}: {value}" + (f", was {before[key]}" if key in before else "") for key, value in changes.items()),
        yaml.safe_dump(with_changes(content, changes), sort_keys=False, allow_unicode=True),
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    return True


def with_changes(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with other values (dotted key -> value); a class given by its path gets `init_args`."""
    content = copy.deepcopy(content)
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = content
        for parent in parents:
            if isinstance(node.get(parent), str):
                node[parent] = {"class_path": node[parent]}
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = value
    return content
