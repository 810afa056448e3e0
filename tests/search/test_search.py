"""The loop of a search, with functions instead of trainings: failures, pruning, stopping, resuming, sharing."""

import csv
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import yaml

from project.errors import UserError
from project.search import results
from project.search.dry_run import Plan
from project.search.search import MOST_FAILURES, open_study, run_trials
from project.search.space import Space

SPACE = Space(Path("space.yaml"), {"data.x": {"low": 0.0, "high": 1.0}, "data.kind": ["a", "b"]}, prune_trials=3)
PLAN = Plan("loss", "min", 4, {"data.x": 0.9, "data.kind": '"b"'}, {"train": "a", "val": "b"})


def loss_of(trial):
    """Smallest at x = 0.3 and kind "a"."""
    return (trial.params["data.x"] + 0.1 * (trial.params["data.kind"] == '"b"') - 0.3) ** 2


def begin(folder, plan=PLAN, space=SPACE):
    return open_study(folder / "mine_tune", space, {"the command line": []}, lambda: plan)


def search(study, n, function=loss_of, sampler="tpe"):
    run_trials(study, n, SPACE, sampler, function)
    return study


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished study of each sampler."""
    return {name: search(begin(tmp_path_factory.mktemp(name)), 24, sampler=name) for name in ("tpe", "random")}


def test_it_begins_with_the_experiment_and_finds_better_values(searched, tmp_path):
    for study in searched.values():
        assert study.trials[0].params == PLAN.params
        assert results.ranked(study)[0].value < study.trials[0].value
    # After the random trials, TPE samples near the best.
    late = {name: statistics.median(trial.value for trial in study.trials[8:]) for name, study in searched.items()}
    assert late["tpe"] < 0.5 * late["random"]
    results.write_figures(searched["random"], tmp_path)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["epochs", "history", "importances", "values"]


def test_failed_trials_do_not_end_a_search(tmp_path):
    def function(trial):
        if trial.number == 1:
            raise UserError("the loss is not finite (nan) in epoch 1, batch 2")
        if trial.number == 2:
            raise RuntimeError("CUDA out of memory")
        return loss_of(trial)

    study = search(begin(tmp_path), 5, function)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    results.write_trials(study, SPACE, tmp_path / "trials.csv")
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    reasons = [row["reason"] for row in rows]
    assert reasons[1:3] == ["the loss is not finite (nan) in epoch 1, batch 2", "RuntimeError: CUDA out of memory"]
    assert float(rows[3]["data.x"]) == SPACE.decode(study.trials[3].params)["data.x"]
    assert "3 complete, 0 pruned, 2 failed" in results.summary(study, SPACE)
    # The same number of trials again is nothing to do.
    assert len(search(begin(tmp_path), 5, function).trials) == 5


def test_a_search_ends_when_everything_fails(tmp_path):
    def function(trial):
        raise ValueError("no")

    study = begin(tmp_path)
    with pytest.raises(UserError, match=r"in a row failed, the last because: ValueError: no"):
        search(study, 20, function)
    assert len(study.trials) == MOST_FAILURES


def test_a_bad_trial_is_pruned_after_its_first_epochs(tmp_path):
    def function(trial):
        for epoch in range(1, 5):
            trial.report(loss_of(trial), epoch)
            if epoch < 4 and trial.should_prune():
                raise optuna.TrialPruned
        return loss_of(trial)

    study = search(begin(tmp_path, space=replace(SPACE, prune_after=0.5)), 12, function, "random")
    pruned = [trial for trial in study.trials if trial.state.name == "PRUNED"]
    assert [trial.state.name for trial in study.trials[:3]] == ["COMPLETE"] * 3
    assert pruned
    assert all(list(trial.intermediate_values) == [1, 2] for trial in pruned)
    unpruned = begin(tmp_path / "other", space=replace(SPACE, prune_after=None))
    assert all(trial.state.name == "COMPLETE" for trial in search(unpruned, 12, function, "random").trials)


def test_a_stopped_search_resumes_with_the_values_of_the_stopped_trial(tmp_path, searched):
    def function(trial):
        if trial.number == 10:
            raise KeyboardInterrupt
        return loss_of(trial)

    with pytest.raises(KeyboardInterrupt, match="the same command resumes it"):
        search(begin(tmp_path), 12, function)
    study = search(begin(tmp_path), 12, loss_of)
    done = results.finished(study)
    assert len(done) == 12
    assert [trial.params for trial in done[:11]] == [trial.params for trial in searched["tpe"].trials[:11]]


def test_processes_share_a_study(tmp_path):
    studies = [begin(tmp_path) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda study: search(study, 12, sampler="random"), studies))
    trials = begin(tmp_path).trials
    # Both may begin the last trial.
    assert 12 <= len(trials) <= 13
    assert len({trial.params["data.x"] for trial in trials}) == len(trials)


def test_a_metric_that_should_be_large(tmp_path):
    study = search(begin(tmp_path, replace(PLAN, mode="max")), 5)
    assert results.ranked(study)[0].value == max(trial.value for trial in study.trials) == study.best_value


def test_the_best_values_are_an_experiment_with_comments(searched, tmp_path):
    content = {"model": {"class_path": "a.B", "init_args": {"loss": "c.D"}}, "data": {"kind": "b", "crop": 8}}
    path = tmp_path / "mine_tuned.yaml"
    study = searched["tpe"]
    assert results.write_best(path, study, SPACE, content, PLAN)
    best = SPACE.decode(results.ranked(study)[0].params)
    expected = {**content, "data": {"kind": best["data.kind"], "crop": 8, "x": best["data.x"]}}
    assert yaml.safe_load(path.read_text()) == expected
    assert f"# data.x: {best['data.x']}, was 0.9" in path.read_text().splitlines()
    # It is written again, but no other file is overwritten.
    assert results.write_best(path, study, SPACE, content, PLAN)
    path.write_text("data: {}")
    with pytest.raises(UserError, match="rename it"):
        results.write_best(path, study, SPACE, content, PLAN)


def test_a_class_without_arguments_gets_some():
    content = {"model": {"loss": "c.D"}}
    changed = results.with_changes(content, {"model.loss.init_args.reduction": "sum"})
    assert changed == {"model": {"loss": {"class_path": "c.D", "init_args": {"reduction": "sum"}}}}


def test_nothing_is_written_where_the_experiment_itself_is_best(tmp_path, capsys):
    study = search(begin(tmp_path), 4, lambda trial: float(trial.number))
    assert not results.write_best(tmp_path / "mine_tuned.yaml", study, SPACE, {}, PLAN)
    assert "no trial is better" in capsys.readouterr().out
    assert not (tmp_path / "mine_tuned.yaml").exists()
