import json
import os

import pytest

from project.errors import UserError
from project.experiment import run as runs
from project.experiment.run import Run, find_run, new_run, runs_of, write_json


@pytest.fixture(autouse=True)
def no_inheritance(monkeypatch):
    for name in (runs.VARIABLE, "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_PROCID"):
        monkeypatch.setenv(name, "x")  # so that it is removed again after the test, even if the code sets it
        monkeypatch.delenv(name)


def make(root, experiment, name):
    folder = root / experiment / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    return Run(folder)


def test_new_run_is_handed_to_further_processes_only(tmp_path, monkeypatch):
    first = new_run("a", tmp_path)
    assert not first.folder.exists()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert new_run("a", tmp_path).folder == first.folder
    monkeypatch.delenv("LOCAL_RANK")
    # A variable left over from an earlier command must not put two runs into one folder.
    first.folder.mkdir(parents=True)
    assert new_run("a", tmp_path).folder != first.folder
    assert os.environ[runs.VARIABLE] != str(first.folder)


def test_launchers_need_a_folder_for_all(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(UserError, match=runs.VARIABLE):
        new_run("a", tmp_path)


def test_latest_follows_the_newest(tmp_path):
    for name in ("2026-01-01_00-00-00", "2026-01-02_00-00-00"):
        make(tmp_path, "a", name).make_latest()
        assert (tmp_path / "a/latest").resolve().name == name
    assert [run.folder.name for run in runs_of("a", tmp_path)] == ["2026-01-01_00-00-00", "2026-01-02_00-00-00"]


def test_find_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    old, b, new = make(root, "a", "2026-01-01"), make(root, "b", "2026-01-02"), make(root, "a", "2026-01-03")
    new.make_latest()
    assert find_run(None, root).folder == new.folder
    assert find_run("a", root).folder == new.folder
    assert find_run("b", root).folder == b.folder
    assert find_run("a/2026-01-01", root).folder == old.folder
    assert find_run(str(old.folder), root).folder == old.folder
    assert find_run(str(root / "a/latest"), root).folder.resolve() == new.folder
    with pytest.raises(UserError, match="Experiments with runs"):
        find_run("c", root)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1.5}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
