"""metrics.json and provenance.json: what is read back, and what is refused."""

import json
from dataclasses import asdict

import pytest

from project.errors import UserError
from project.runs.records import MeasuredRun, Metrics, Provenance
from project.runs.run_folder import Run

RUN = {"name": "a/1", "experiment": "a", "dataset": "b", "task": "translation", "leading": {"mse": "min"}}
METRICS = {"metrics": {"mse": 1, "loss": 0.5}, "n_samples": 3, "run": RUN, "epoch": 4, "split": "val"}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "a/1").mkdir(parents=True)
    return Run(tmp_path / "a/1")


def test_undefined_values_are_not_called_samples():
    undefined = {"precision": 5, "precision/a": 1, "count_pearson": 6}
    lines = Metrics(metrics={"precision": 0.5}, n_samples=2, run=MeasuredRun(experiment="a"), undefined=undefined)
    assert lines.describe_undefined() == [
        "precision: 5 values are not defined; it is the mean of the others",
        "count_pearson is not defined",
    ]


def test_records_are_read_as_they_were_written(run):
    record = Metrics(metrics={"mse": 0.5}, n_samples=2, run=MeasuredRun(name="a/1", experiment="a", fold=2))
    run.metrics_file("test").write_text(json.dumps(asdict(record)))
    assert run.read_metrics("test") == record
    assert run.read_metrics("val") is None
    provenance = Provenance(experiment="a", seed=3, versions={"torch": "2.11"}, best={"checkpoint": "best.ckpt"})
    (run.folder / "provenance.json").write_text(json.dumps(asdict(provenance)))
    assert run.read_provenance() == provenance
    assert provenance.identity().keys() <= asdict(record.run).keys()


def test_fields_that_another_version_lacks_or_adds_are_no_error(run):
    run.metrics_file("val").write_text(json.dumps(METRICS | {"new": 1, "run": RUN | {"newer": 2, "leading": None}}))
    record = run.read_metrics()
    assert record.undefined == {}
    assert record.run.leading == {"loss": "min"}
    (run.folder / "provenance.json").write_text(json.dumps({"experiment": "a"}))
    assert run.read_provenance().finished  # early versions did not record a status


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metrics", {"mse": "x"}),
        ("n_samples", None),
        *(("run", value) for value in ({}, RUN | {"leading": {"mse": "up"}})),
        *(("run", RUN | {"dataset": value}) for value in ("../../outside", "..", 7)),
    ],
)
def test_damaged_metrics_are_refused(run, key, value):
    run.metrics_file("val").write_text(json.dumps(METRICS | {key: value}))
    with pytest.raises(UserError, match=r'metrics\.json" is damaged'):
        run.read_metrics()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, "{}", *(json.dumps(RUN | {k: 3}) for k in ("test_evaluations", "data_hash"))]
)
def test_damaged_provenance_is_refused(run, text):
    (run.folder / "provenance.json").write_text(text)
    with pytest.raises(UserError, match=r'provenance\.json" is damaged'):
        run.read_provenance()


def test_fields_of_the_provenance_are_updated(run):
    run.update_provenance(experiment="a", status="started")
    run.add_test_evaluation({"time": "now"})
    run.add_test_evaluation({"time": "later"})
    run.update_provenance(status="finished")
    provenance = run.read_provenance()
    assert provenance.status == "finished"
    assert [each["time"] for each in provenance.test_evaluations] == ["now", "later"]
