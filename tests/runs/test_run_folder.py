import os
from pathlib import Path

import pytest

from project.errors import UserError
from project.files import write_json
from project.models.checkpoint_files import best_checkpoint
from project.runs import run_folder as runs
from project.runs.find_runs import find_run, link_latest, run_to_resume, runs_of
from project.runs.run_folder import Run, new_run, remove_unused


@pytest.fixture(autouse=True)
def no_inheritance(monkeypatch):
    for name in (runs.RUN_FOLDER_VARIABLE, "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_PROCID"):
        monkeypatch.setenv(name, "x")  # so that it is removed again after the test, even if the code sets it
        monkeypatch.delenv(name)


def make(root, experiment, name, day=1, resumed=None, **facts):
    """A run that was started on a day of January, and resumed on another."""
    run = Run(root / experiment / name)
    run.folder.mkdir(parents=True)
    run.config.write_text("{}")
    starts = {"resumed": [{"time": f"2026-01-{resumed:02d}T00:00:00+00:00"}]} if resumed else {}
    write_json(run.folder / "provenance.json", {"started": f"2026-01-{day:02d}T00:00:00+00:00", **starts, **facts})
    return run


def test_only_processes_for_further_devices_inherit_a_run(tmp_path, monkeypatch):
    first = new_run("a", tmp_path)
    assert len({first.folder, *(runs.new_folder(tmp_path / "a") for _ in range(3))}) == 4  # in the same second
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert new_run("a", tmp_path).folder == first.folder
    monkeypatch.delenv("LOCAL_RANK")
    # A variable left over from an earlier command must not put two runs into one folder.
    assert new_run("a", tmp_path).folder != first.folder
    assert os.environ[runs.RUN_FOLDER_VARIABLE] != str(first.folder)
    monkeypatch.delenv(runs.RUN_FOLDER_VARIABLE)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")  # a launcher's processes would each choose a folder
    with pytest.raises(UserError, match=runs.RUN_FOLDER_VARIABLE):
        new_run("a", tmp_path)


def test_a_refused_start_leaves_no_folder(tmp_path):
    run, other = new_run("a", tmp_path), make(tmp_path, "b", "one")
    for name in ("log.txt", "tensorboard/hparams.yaml", "wandb/offline/x"):
        path = run.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    with_file = new_run("c", tmp_path)
    (with_file.folder / "job.sh").write_text("")
    for each in (run, other, with_file):
        remove_unused(each)
    assert not (tmp_path / "a").exists()
    assert other.config.is_file()
    assert (with_file.folder / "job.sh").is_file()  # somebody else's


def test_latest_is_the_run_that_was_last_started_or_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = Path("runs")
    for name, day, resumed in (("seed0", 1, None), ("2026-01-02_00-00-00", 2, 9), ("2026-01-03_00-00-00", 3, None)):
        make(root, "a", name, day, resumed)
    make(root, "b", "2026-01-05_00-00-00", 5)
    link_latest(root / "a")
    newest = root / "a/2026-01-02_00-00-00"
    assert [run.folder.name for run in runs_of("a")] == ["seed0", "2026-01-03_00-00-00", "2026-01-02_00-00-00"]
    for text in ("a", "a/latest", "runs/a/latest", str(root.resolve() / "a/latest")):
        assert find_run(text).folder.resolve() == newest.resolve()
    assert run_to_resume("latest", "a").folder == newest
    for text in (None, "latest"):
        assert find_run(text).folder == newest
    # A link that another machine or a copy left behind decides nothing.
    (root / "a/latest").unlink()
    (root / "a/latest").symlink_to("gone")
    assert find_run("runs/a/latest").folder == newest


def test_a_run_of_an_older_version_is_as_old_as_its_configuration(tmp_path):
    old, new = make(tmp_path, "a", "z", 3), make(tmp_path, "a", "b", 4)
    (old.folder / "provenance.json").write_text("{}")
    os.utime(old.config, (0, 0))
    assert runs_of("a", tmp_path) == [old, new]
    (old.folder / "provenance.json").write_text("damaged")
    assert runs_of("a", tmp_path) == [old, new]


def test_find_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = Path("runs")
    old, b, new = make(root, "a", "one", 1), make(root, "b", "two", 2), make(root, "a", "three", 3)
    fitted = make(root, "baseline_mean", "four", 4, baseline=True, dataset="mine")
    assert find_run(None, dataset="mine") == fitted  # on which nothing else was trained
    assert find_run(None) == run_to_resume("latest", None) == new  # a baseline cannot be resumed
    assert find_run("b") == b
    for text in ("a/one", "runs/a/one/", str(old.folder.absolute())):
        assert find_run(text) == old
    with pytest.raises(UserError, match="Experiments with runs"):
        find_run("c")
    with pytest.raises(UserError, match=r'on "mime"\. Did you mean "mine"'):
        find_run(None, dataset="mime")
    Path("configs/experiments").mkdir(parents=True)
    Path("configs/experiments/unet_dice.yaml").touch()
    with pytest.raises(UserError, match="unet_dice has not been trained yet: `make train EXP=unet_dice`"):
        find_run("unet_dice")
    make(tmp_path / "fitted/runs", "baseline_mean", "five", 5, baseline=True)
    monkeypatch.chdir(tmp_path / "fitted")
    assert find_run(None).experiment == "baseline_mean"
    monkeypatch.chdir(tmp_path / new.folder)
    assert find_run(".").name == "a/three"


def test_the_newest_finished_run_is_named_where_a_run_has_no_checkpoint(tmp_path):
    runs = [make(tmp_path, "a", str(i), i, status=status) for i, status in enumerate(["finished"] * 3 + ["started"], 1)]
    link_latest(tmp_path / "a")
    for run in runs[:2]:
        run.checkpoints.mkdir()
        (run.checkpoints / "best.ckpt").touch()
    with pytest.raises(UserError, match=f"newest finished run of a is RUN={runs[1].folder}"):
        best_checkpoint(runs[3].folder)
    (runs[1].checkpoints / "best.ckpt").unlink()
    runs[0].update_provenance(status="started")
    with pytest.raises(UserError, match=r"or train again$"):
        best_checkpoint(runs[3].folder)


def test_a_run_on_another_disk_has_one_name(tmp_path, monkeypatch):
    """Under two names it would be compared with itself."""
    monkeypatch.chdir(tmp_path)
    for name in ("disk", "runs/b"):
        Path(name).mkdir(parents=True)
    Path("runs/a").symlink_to(tmp_path / "disk")
    make(Path("runs"), "a", "one", 1)
    link_latest(Path("runs/a"))
    for text in ("disk/one", str(tmp_path / "disk/one"), "runs/b/../a/one", "disk/latest", "runs/a/latest", "a"):
        assert find_run(text).folder == Path("runs/a/one")
