"""The search, with a stand-in for the training: it stops, goes on, is shared, and survives its trials."""

import csv
import json
import os
import signal
import statistics
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("optuna")
from optuna.trial import TrialState

from project.errors import UserError
from project.search import report
from project.search.dry_run import Plan
from project.search.search import FAILURES, SAMPLERS, Search
from project.search.space import Choice, Range, Space
from project.training.interruption import Stopped

# Two epochs, a loss with its minimum at x = 0.3, and what can go wrong. `how` says at which trial.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
folder, x, how = Path(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
number = int(folder.name)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
folder.mkdir(exist_ok=True)
(folder / "starts.txt").open("a").write(f"{sys.argv[4:]} ")
facts = {"data_hash": {"train": "a", "val": "b"}, "status": "started"}
(folder / "provenance.json").write_text(json.dumps(facts))
loss = (x - 0.3) ** 2
if number in how.get("diverges", []):
    print("12:00:00 epoch 1"); print("error: the loss is not finite (nan) in epoch 1, batch 2", file=sys.stderr)
    sys.exit(2)
if number in how.get("killed", []):
    os.kill(os.getpid(), signal.SIGKILL)
if number in how.get("undefined", []):
    loss = None
(folder / "history.csv").write_text(f"epoch,val/loss\\n0,{1 + (loss or 0)}\\n")
if number == how.get("stops") and "--resume" not in sys.argv:
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(30)
if number > 2 and loss is not None and loss > how.get("slow", 99):
    time.sleep(30)
with (folder / "history.csv").open("a") as file:
    file.write(f"1,{loss or ''}\\n")
(folder / "metrics.json").write_text(json.dumps({"metrics": {} if loss is None else {"loss": loss}}))
(folder / "provenance.json").write_text(json.dumps(facts | {"status": "finished"}))
"""
PLAN = Plan("mine", {}, [], {}, {"train": "a", "val": "b"}, "loss", "min", {"x": 0.9, "kind": '"b"'}, 2, 1.0, 1.0)


class StandIn(Search):
    """Trains nothing."""

    def command(self, trial):
        values = self.values(trial)
        x = values["x"] + 0.1 * (values["kind"] == "b")
        script = self.folder / "stand_in.py"
        script.write_text(STAND_IN)
        folder = self.run_of(trial.number).folder
        # As the true one: what stands behind the first words is left out on resuming.
        return [sys.executable, "-S", str(script), str(folder), str(x), json.dumps(self.how), "tune", "c", "f", "none"]


def begin(folder, name="a", sampler="tpe", prune_after=None, plan=PLAN, **how):
    settings = {"x": Range(0.0, 1.0), "kind": Choice(("a", "b"))}
    space = Space(Path("space.yaml"), settings, prune_after=prune_after, prune_trials=3)
    search = StandIn(folder / f"{name}_tune", space, sampler)
    search.how = how
    search.open(lambda: plan)
    return search


@pytest.fixture
def make(tmp_path):
    return partial(begin, tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A search of each kind, to its end."""
    searches = {kind: begin(tmp_path_factory.mktemp("done"), kind, kind) for kind in SAMPLERS}
    for search in searches.values():
        assert len(run(search, 20)) == 20
    return searches


def run(search, n):
    told = []
    search.run(n, lambda search, trial: told.append(trial))
    return told


def values(search):
    return [(search.values(trial), trial.value) for trial in search.study.trials]


def test_it_finds_more_than_chance_and_begins_with_the_experiments_own_values(done):
    for search in done.values():
        assert search.values(search.study.trials[0]) == {"x": 0.9, "kind": "b"}
        assert report.own_trial(search).number == 0
        assert report.best_trial(search).value < report.own_trial(search).value
    # Beyond what is drawn at random, TPE draws near the best.
    late = {kind: statistics.median(value for _, value in values(search)[8:]) for kind, search in done.items()}
    assert late["tpe"] < 0.5 * late["random"]


def test_trials_that_fail_are_no_failed_search(make):
    search = make(diverges=[1], killed=[2], undefined=[4])
    run(search, 6)
    states = [trial.state.name for trial in search.study.trials]
    assert states == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    reasons = [trial.user_attrs.get("reason", "") for trial in search.study.trials]
    assert reasons[1] == "the loss is not finite (nan) in epoch 1, batch 2"
    assert "SIGKILL" in reasons[2]
    assert reasons[4] == "loss is not defined"
    report.keep(search)
    rows = list(csv.DictReader((search.folder / "trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == [state.lower() for state in states]
    assert float(rows[3]["x"]) == search.values(search.study.trials[3])["x"]
    assert "3 complete, 0 given up, 3 failed" in report.summary(search)
    # Nothing is trained again by asking for the same number.
    assert run(make(), 6) == []


def test_when_everything_fails_the_search_ends(make):
    search = make(diverges=list(range(20)))
    with pytest.raises(UserError, match=r"in a row failed, the last because: the loss is not finite"):
        run(search, 20)
    assert len(search.study.trials) == FAILURES


def test_what_is_not_promising_is_given_up_early(make):
    search = make(prune_after=0.5, sampler="random", slow=0.2)  # which sleep in their second epoch
    run(search, 12)
    states = [trial.state for trial in search.study.trials]
    given_up = [trial for trial in search.study.trials if trial.state == TrialState.PRUNED]
    assert states[:3] == [TrialState.COMPLETE] * 3
    assert given_up
    for trial in given_up:
        assert trial.intermediate_values.keys() <= {0, 1}
        folder = search.run_of(trial.number).folder
        assert json.loads((folder / "provenance.json").read_text())["study"]["trial"] == trial.number


def test_a_search_that_is_stopped_goes_on_and_finds_the_same(make, done):
    search = make(stops=10)
    with pytest.raises(Stopped, match="the same command goes on") as stop:
        run(search, 12)
    assert stop.value.status == 128 + signal.SIGTERM
    assert [trial.state for trial in search.study.trials[-2:]] == [TrialState.COMPLETE, TrialState.RUNNING]
    search = make(stops=10)
    run(search, 12)
    assert values(search) == values(done["tpe"])[:12]
    # The training that was stopped went on; the others were started once.
    starts = [len((search.run_of(i).folder / "starts.txt").read_text().split("[")) - 1 for i in range(12)]
    assert starts == [1] * 10 + [2, 1]
    assert "--resume" in (search.run_of(10).folder / "starts.txt").read_text()


def test_what_a_killed_search_left_behind_is_taken_over_but_not_what_lives(make):
    first = make()
    living = first._next(4)  # its lock is held as long as this is
    assert living[0].number == 0
    abandoned, _, claim = first._next(4)
    assert abandoned.number == 1
    claim.release()  # as the end of its process would
    second = make()
    assert [trial.number for trial in run(second, 4)] == [1, 2, 3]
    assert second.study.trials[0].state == TrialState.RUNNING


def test_a_training_that_outlived_its_search_is_left_alone(make):
    from project.search.trial import lock_of

    first = make()
    _, _, claim = first._next(2)
    claim.release()
    with lock_of(first.run_of(0).folder):
        assert make()._next(1) is None
    assert make()._next(1)[0].number == 0


def test_several_searches_share_a_study(make, done):
    searches = [make("shared", sampler="random") for _ in range(3)]
    threads = [threading.Thread(target=run, args=(search, 9)) for search in searches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = searches[0].study.trials
    assert [trial.number for trial in trials] == list(range(9))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert values(searches[0]) == values(done["random"])[:9]


def test_other_data_ends_the_search(make):
    search = make(plan=replace(PLAN, data={"train": "other", "val": "b"}))
    with pytest.raises(UserError, match="not what it was when the study"):
        run(search, 2)


def test_the_larger_is_better_where_the_metric_says_so(make):
    search = make(plan=replace(PLAN, mode="max"))
    run(search, 4)
    assert report.importances(search) == {}
    assert report.best_trial(search).value == max(value for _, value in values(search))
    assert search.study.best_value == report.best_trial(search).value


def test_importance_and_pictures(done):
    search = done["random"]
    found = report.importances(search)
    assert found["x"] > 3 * found["kind"]
    assert sum(found.values()) == pytest.approx(1)
    pictures = report.keep(search)
    assert sorted(path.name for path in pictures.iterdir()) == ["history.png", "importance.png"]
    axes = report.draw_history(search).axes[0]
    best = next(line for line in axes.lines if line.get_label() == "best so far").get_ydata()
    assert list(best) == sorted(best, reverse=True)
    assert best[-1] == report.best_trial(search).value


def test_the_training_inherits_no_launcher(monkeypatch):
    from project.search.search import _environment

    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert {"SLURM_PROCID", "LOCAL_RANK"} & _environment().keys() == set()
    assert _environment()["CUDA_VISIBLE_DEVICES"] == os.environ["CUDA_VISIBLE_DEVICES"]
