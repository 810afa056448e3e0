"""The loop of a search, with functions instead of trainings: failures, pruning, stopping, resuming, sharing."""

import csv
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
import yaml

from project.errors import UserError
from project.search import results
from project.search.search import MOST_FAILURES, PRUNE_TRIALS, open_study, run_trials
from project.search.space import Space

SPACE = Space(Path("space.yaml"), {"data.x": {"low": 0.0, "high": 1.0}, "data.kind": ["a", "b"]})
PLAN = {"metric": "loss", "mode": "min", "epochs": 8, "data_hash": "b"}


def loss_of(trial, values):
    """Smallest at x = 0.3 and kind "a"; the experiment itself is at 0.9."""
    return (values.get("data.x", 0.9) + 0.1 * (values.get("data.kind") == "b") - 0.3) ** 2


def begin(folder, plan=PLAN):
    return open_study(folder / "mine_tune", {"the command line": []}, lambda: plan)


def search(study, n, function=loss_of, sampler="tpe"):
    run_trials(study, n, SPACE, sampler, function)
    return study


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished study of each sampler."""
    return {name: search(begin(tmp_path_factory.mktemp(name)), 24, sampler=name) for name in ("tpe", "random")}


def test_it_begins_with_the_experiment_and_finds_better_values(searched, tmp_path):
    for study in searched.values():
        assert study.trials[0].params == {}
        assert results.ranked(study)[0].value < study.trials[0].value
    # After the random trials, TPE samples near the best.
    late = {name: statistics.median(trial.value for trial in study.trials[8:]) for name, study in searched.items()}
    assert late["tpe"] < 0.5 * late["random"]
    results.write_figures(searched["random"], SPACE, tmp_path)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["history", "importances", "values"]


def test_failed_trials_do_not_end_a_search(tmp_path):
    def function(trial, values):
        if trial.number == 1:
            raise UserError("the loss is not finite (nan) in epoch 1, batch 2")
        if trial.number == 2:
            raise RuntimeError("CUDA out of memory")
        return loss_of(trial, values)

    study = search(begin(tmp_path), 5, function)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    results.write_trials(study, SPACE, tmp_path / "trials.csv")
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    reasons = [row["reason"] for row in rows]
    assert reasons[1:3] == ["the loss is not finite (nan) in epoch 1, batch 2", "RuntimeError: CUDA out of memory"]
    assert float(rows[3]["data.x"]) == study.trials[3].user_attrs["values"]["data.x"]
    # The same number of trials again is nothing to do.
    assert len(search(begin(tmp_path), 5, function).trials) == 5


@pytest.mark.parametrize(("first_bad", "n"), [(0, 1), (1, 1 + MOST_FAILURES)])
def test_a_search_ends_when_the_experiment_or_everything_fails(tmp_path, first_bad, n):
    def function(trial, values):
        if trial.number >= first_bad:
            raise ValueError("no")
        return 1.0

    study = begin(tmp_path)
    with pytest.raises(UserError, match="because: ValueError: no"):
        search(study, 20, function)
    assert len(study.trials) == n


def test_a_bad_trial_is_pruned_after_its_first_epochs(tmp_path):
    def function(trial, values):
        for epoch in range(1, 9):
            trial.report(loss_of(trial, values), epoch)
            if epoch < 8 and trial.should_prune():
                raise optuna.TrialPruned
        return loss_of(trial, values)

    study = search(begin(tmp_path), 12, function, "random")
    pruned = [trial for trial in study.trials if trial.state.name == "PRUNED"]
    assert [trial.state.name for trial in study.trials[:PRUNE_TRIALS]] == ["COMPLETE"] * PRUNE_TRIALS
    assert pruned
    assert all(list(trial.intermediate_values) == [1, 2] for trial in pruned)


@pytest.mark.parametrize("stopped", [0, 10])
def test_a_stopped_search_resumes_with_the_values_of_the_stopped_trial(tmp_path, searched, stopped):
    def function(trial, values):
        if trial.number == stopped:
            raise KeyboardInterrupt
        return loss_of(trial, values)

    with pytest.raises(KeyboardInterrupt, match="the same command resumes it"):
        search(begin(tmp_path), 12, function)
    done = results.finished(search(begin(tmp_path), 12))
    assert len(done) == 12
    assert done[0].params == {}
    if stopped:
        assert [trial.params for trial in done[:11]] == [trial.params for trial in searched["tpe"].trials[:11]]


def test_processes_share_a_study(tmp_path):
    studies = [begin(tmp_path) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda study: search(study, 12, sampler="random"), studies))
    trials = begin(tmp_path).trials
    # Both may begin the last trial.
    assert 12 <= len(trials) <= 13
    assert len({trial.params.get("data.x") for trial in trials}) == len(trials)


def test_the_best_values_are_an_experiment_with_comments(searched, tmp_path, capsys):
    content = {"model": {"class_path": "a.B", "init_args": {"loss": "c.D"}}, "data": {"kind": "b", "crop": 8}}
    path = tmp_path / "mine_tuned.yaml"
    study = searched["tpe"]
    assert results.write_best(path, study, content)
    best = results.ranked(study)[0].user_attrs["values"]
    expected = {**content, "data": {"kind": best["data.kind"], "crop": 8, "x": best["data.x"]}}
    assert yaml.safe_load(path.read_text()) == expected
    # It is written again, but no other file is overwritten.
    assert results.write_best(path, study, content)
    path.write_text("data: {}")
    with pytest.raises(UserError, match="rename it"):
        results.write_best(path, study, content)
    # Nothing is better than the experiment; a metric that should be large.
    study = search(begin(tmp_path, PLAN | {"mode": "max"}), 4, lambda trial, values: float(-trial.number))
    assert not results.write_best(tmp_path / "other_tuned.yaml", study, {})
    assert "no trial is better" in capsys.readouterr().out
    assert not (tmp_path / "other_tuned.yaml").exists()
