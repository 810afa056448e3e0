"""Search spaces: impossible ones are refused before anything is trained."""

import optuna
import pytest
import yaml
from optuna.trial import FixedTrial
from shipped_configs import CONFIGS

from project.errors import UserError
from project.search.space import as_overrides, find_space, read_space

LR = "optimizer.init_args.lr"


def written(tmp_path, settings, **more):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({"space": settings, **more}))
    return path


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"low": 0.1, "high": 0.01}, "low=0.1, high=0.01"),
        ({"low": 0, "high": 1, "log": True}, "log"),
        ({"low": 1, "high": float("inf")}, "must be numbers"),
        ({"low": "small", "high": 1}, "must be numbers"),
        ({"low": 1}, "write a range"),
        ({"low": 1, "high": 2, "logg": True}, "must be numbers"),
        ([], "write a range"),
        (16, "write a range"),
    ],
)
def test_an_impossible_range_is_refused(tmp_path, setting, message):
    with pytest.raises(UserError) as error:
        read_space(written(tmp_path, {LR: setting}))
    assert message.lower() in str(error.value).lower()
    assert LR in str(error.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("seed_everything", "a seed is luck"),
        ("data.dataset", "could not be compared"),
        ("length.steps", "could not be compared"),
        ("model.init_args.metrics", "could not be compared"),
        ("data", "could not be compared"),
        ("config", "could not be compared"),
    ],
)
def test_a_key_by_which_trials_cannot_be_compared_is_refused(tmp_path, key, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        read_space(written(tmp_path, {key: [1, 2]}))


def test_there_are_no_other_keys(tmp_path):
    with pytest.raises(UserError, match="unknown key metric"):
        read_space(written(tmp_path, {LR: [1, 2]}, metric="val/mse"))


def test_values_of_all_kinds_become_overrides(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "space:\n  optimizer.init_args.lr: {low: 1e-4, high: 1.0e-2, log: true}\n"
        "  data.batch_size: {low: 4, high: 64, step: 4}\n"
        "  data.balanced: [true, false]\n  model.init_args.loss: [{class_path: a.B, init_args: {x: 1}}, a.C]\n"
    )
    space = read_space(path)
    params = {LR: 1.23456e-3, "data.batch_size": 8, "data.balanced": "true"}
    values = space.suggest(
        FixedTrial(params | {"model.init_args.loss": '{"class_path": "a.B", "init_args": {"x": 1}}'})
    )
    assert as_overrides(values) == [
        "--optimizer.init_args.lr=0.001235",
        "--data.batch_size=8",
        "--data.balanced=true",
        '--model.init_args.loss={"class_path": "a.B", "init_args": {"x": 1}}',
    ]
    trials = [space.suggest(optuna.create_study().ask()) for _ in range(20)]
    assert all(1e-4 <= trial[LR] <= 1e-2 and trial["data.batch_size"] % 4 == 0 for trial in trials)
    assert space.corners()[0] == {
        **{LR: 1e-4, "data.batch_size": 4, "data.balanced": True},
        **{"model.init_args.loss": {"class_path": "a.B", "init_args": {"x": 1}}},
    }


def test_shipped_spaces_are_valid_and_named_where_one_is_missing(monkeypatch, tmp_path):
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)
    for path in sorted((CONFIGS / "tune").glob("*.yaml")):
        assert find_space("unet_mse", path.stem).settings
    with pytest.raises(UserError, match=r'Did you mean "unet_mse"\? Choose one of .*optimizer'):
        find_space("unet_mes")
    with pytest.raises(UserError, match=r"data.batch_size is searched, and --data.batch_size sets it"):
        find_space("unet_mse", None, ["--data.batch_size=4"])
