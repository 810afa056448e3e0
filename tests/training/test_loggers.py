from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest

from project.errors import UserError
from project.runs.run_folder import Run, remove_unused
from project.training import loggers
from project.training.loggers import logged_in, make_loggers


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A person who is not logged in anywhere."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path


class Recorded:
    """Replaces WandbLogger; fails as often as `failures` says."""

    failures = 0
    calls: list[bool] = []  # noqa: RUF012

    def __init__(self, *, offline, **_):
        self.calls.append(offline)

    @property
    def experiment(self):
        if len(self.calls) <= self.failures:
            raise OSError("no network")
        return object()


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setattr(Recorded, "calls", [])
    monkeypatch.setattr(loggers, "WandbLogger", Recorded)
    return Recorded


def test_unknown_logger_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match='Did you mean "tensorboard"'):
        make_loggers("tensorbord", Run(tmp_path / "e/t"))


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="MLflow is installed")
def test_a_logger_that_is_not_installed_says_what_to_install(tmp_path):
    with pytest.raises(UserError, match="pip install mlflow"):
        make_loggers("mlflow", Run(tmp_path / "e/t"))


def test_a_resumed_training_continues_its_run_of_mlflow(tmp_path, monkeypatch):
    class Recorded:
        ids: ClassVar[list[str | None]] = []

        def __init__(self, *_: str, run_id: str | None, **__: str) -> None:
            self.ids.append(run_id)
            self.run_id = run_id or "abc"

    monkeypatch.setattr(loggers, "MLFlowLogger", Recorded)
    run = Run(tmp_path / "e/t")
    for _ in range(2):
        make_loggers("mlflow", run)
    assert Recorded.ids == [None, "abc"]
    remove_unused(run)  # of a training that is refused
    assert not run.folder.exists()


def test_logged_in_by_netrc_or_key(nobody, monkeypatch):
    assert not logged_in()
    (nobody / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert logged_in()
    (nobody / "netrc").write_text("rubbish that is no netrc\n")
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert logged_in()


def test_offline_unless_logged_in(nobody, wandb):
    make_loggers("wandb", Run(nobody / "e/t"))
    assert wandb.calls == [True]


@pytest.mark.parametrize(("failures", "calls", "n"), [(0, [False], 1), (1, [False, True], 1), (2, [False, True], 0)])
def test_wandb_never_stops_a_training(nobody, wandb, monkeypatch, failures, calls, n):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setattr(Recorded, "failures", failures)
    assert len(make_loggers("wandb,tensorboard", Run(nobody / "e/t"))) == n + 1
    assert wandb.calls == calls


@pytest.mark.slow
def test_real_wandb_writes_offline_into_the_run_folder(nobody):
    run = Run(nobody / "e/t")
    (logger,) = make_loggers("wandb", run)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.experiment.finish()
    (again,) = make_loggers("wandb", run)  # of a training that is resumed
    again.experiment.finish()
    assert again.version == logger.version
    assert list((run.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert not Path("wandb").exists()
