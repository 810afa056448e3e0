"""Results of a search: printed lines, trials.csv, Optuna's figures, and the best values as an experiment."""

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
from project.files import write_table, write_text
from project.search.space import Space, as_overrides
from project.training.overrides import apply_overrides

FEWEST = 4  # complete trials, below which some of Optuna's figures show nothing
MARK = "# Best values of the study "


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that are complete, pruned or failed."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials, the best first, the earliest of equal ones."""
    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def format_values(values: Mapping[str, Any]) -> str:
    """Such as "optimizer.init_args.lr 0.003, data.batch_size 8"."""
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "the experiment itself"


def trial_line(study: optuna.Study, number: int) -> str:
    """How a trial ended, and the best so far."""
    trial, best = study.get_trials(deepcopy=False)[number], ranked(study)[:1]
    outcome = {
        TrialState.COMPLETE: f"{trial.value:.5g}" if trial.value is not None else "",
        TrialState.PRUNED: f"pruned after {len(trial.intermediate_values)} epochs",
        TrialState.FAIL: f"failed: {trial.user_attrs.get('reason')}",
    }[trial.state]
    return f"  {outcome}{''.join(f'; best: {t.value:.5g} (trial {t.number})' for t in best)}"


def write_trials(study: optuna.Study, space: Space, path: Path) -> None:
    """trials.csv: values, metric, epochs, seconds, and why a trial failed."""
    rows = []
    for trial in finished(study):
        row = {"trial": trial.number, "state": trial.state.name.lower(), "value": trial.value}
        row |= {key: trial.user_attrs["values"].get(key, "") for key in space.settings}
        seconds = round(trial.duration.total_seconds(), 1) if trial.duration else None
        reason = trial.user_attrs.get("reason")
        rows.append({**row, "epochs": len(trial.intermediate_values), "seconds": seconds, "reason": reason})
    write_table(path, rows)


def write_figures(study: optuna.Study, space: Space, folder: Path) -> None:
    """Optuna's figures of the history, the values and their importances, as PNG."""
    folder.mkdir(exist_ok=True)
    keys = list(space.settings)
    draw: dict[str, Callable[[], Any]] = {"history": lambda: plots.plot_optimization_history(study)}
    if len({trial.value for trial in ranked(study) if trial.params}) >= FEWEST:
        draw["values"] = lambda: plots.plot_slice(study, keys)
        draw["importances"] = lambda: plots.plot_param_importances(study, params=keys)
    for name, plot in draw.items():
        # Optuna calls them experimental, and sets a style for all later figures.
        with warnings.catch_warnings(), pyplot.rc_context():
            warnings.simplefilter("ignore")
            figure = np.ravel(plot())[0].figure
        figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
        pyplot.close(figure)


def write_best(path: Path, study: optuna.Study, content: dict[str, Any]) -> bool:
    """Write the experiment (`content`) with the best values; returns whether they are not its own."""
    trials = ranked(study)
    initial = next((trial for trial in trials if not trial.params), None)
    if not trials or trials[0] is initial:
        print("no trial is better than the experiment itself" if initial else "no trial is complete")
        return False
    mark = f'{MARK}"{study.study_name}"'
    if path.is_file() and not path.read_text(encoding="utf-8").startswith(mark):
        raise UserError(
            f'"{path}" exists and is not from the study "{study.study_name}"; rename it, then run this again'
        )
    best, compared = trials[0], f"; the experiment itself gave {initial.value:.6g}" if initial else ""
    values = best.user_attrs["values"]
    lines = [
        f"{mark}: trial {best.number} of {len(finished(study))}, {best.value:.6g}{compared}.",
        "# It is the best of many on the validation split: expect somewhat less on new images.",
        f"# {format_values(values)}",
        yaml.safe_dump(apply_overrides(content, as_overrides(values)), sort_keys=False, allow_unicode=True),
    ]
    write_text(path, "\n".join(lines))
    return True
