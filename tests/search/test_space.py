"""Search spaces: impossible ones are refused before anything is trained."""

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from shipped_configs import CONFIGS

from project.errors import UserError
from project.search.space import as_overrides, check_metric, find_space, read_space

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
        ({"low": 1, "high": 9, "log": True, "step": 2}, "step"),
        ({"low": 1, "high": 8, "step": 2}, "do not reach 8"),
        ({"low": 1, "high": float("inf")}, "must be numbers"),
        ({"low": "small", "high": 1}, "must be numbers"),
        ({"low": 1}, "write {low: 16, high: 32}"),
        ({"low": 1, "high": 2, "logg": True}, 'unknown key "logg". Did you mean "log"?'),
        ([16, 32, 16], "no two the same"),
        (16, "write {low: 16, high: 32}"),
    ],
)
def test_an_impossible_range_is_refused(tmp_path, setting, message):
    with pytest.raises(UserError) as error:
        read_space(written(tmp_path, {LR: setting}))
    assert message in str(error.value)
    assert LR in str(error.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optimiser.init_args.lr", 'Did you mean "optimizer"?'),
        ("seed_everything", "a seed is luck"),
        ("data.dataset", "could not be compared"),
        ("model.init_args.metrics", "could not be compared"),
    ],
)
def test_a_key_by_which_trials_cannot_be_compared_is_refused(tmp_path, key, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        read_space(written(tmp_path, {key: [1, 2]}))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metrik": "val/mse"}, 'Did you mean "metric"'),
        ({"metric": "val/mse", "mode": "smallest"}, "write both"),
        ({"prune": {"after": 2}}, "a share of the epochs"),
        ({"prune": {"before": 0.5}}, "prune: false"),
    ],
)
def test_other_keys_of_the_file_are_checked(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        read_space(written(tmp_path, {LR: [1, 2]}, **more))


@pytest.mark.parametrize(("prune", "after"), [(False, None), ({"after": 0.5}, 0.5)])
def test_pruning_can_be_set_and_switched_off(tmp_path, prune, after):
    assert read_space(written(tmp_path, {LR: [1, 2]}, prune=prune)).prune_after == after


def test_a_loss_that_changes_its_meaning_cannot_compare_trials(tmp_path):
    space = read_space(written(tmp_path, {"model.init_args.loss": ["torch.nn.MSELoss", "torch.nn.L1Loss"]}))
    with pytest.raises(UserError, match="cannot be compared"):
        check_metric(space, "loss")
    check_metric(space, "mse")
    check_metric(read_space(written(tmp_path, {LR: [1, 2]})), "loss")


def test_values_of_all_kinds_become_overrides(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "space:\n  optimizer.init_args.lr: {low: 1e-4, high: 1.0e-2, log: true}\n"
        "  data.batch_size: {low: 4, high: 64, step: 4}\n"
        "  data.balanced: [true, false]\n  model.init_args.loss: [{class_path: a.B, init_args: {x: 1}}, a.C]\n"
    )
    space = read_space(path)
    kinds = [type(distribution) for distribution in space.distributions.values()]
    assert kinds == [FloatDistribution, IntDistribution, CategoricalDistribution, CategoricalDistribution]
    loss = {"class_path": "a.B", "init_args": {"x": 1}}
    values = {LR: 1e-3, "data.batch_size": 8, "data.balanced": True, "model.init_args.loss": loss}
    assert space.decode(space.encode(values)) == values
    assert as_overrides(values) == [
        "--optimizer.init_args.lr=0.001",
        "--data.batch_size=8",
        "--data.balanced=true",
        '--model.init_args.loss={"class_path": "a.B", "init_args": {"x": 1}}',
    ]
    for outside in ({LR: 0.5}, {"data.batch_size": 9}, {"data.balanced": "yes"}, {LR: None}):
        assert space.encode(values | outside) is None


def test_a_sampled_number_has_few_digits_and_stays_in_its_range(tmp_path):
    space = read_space(written(tmp_path, {LR: {"low": 0.12344, "high": 0.99999}}))
    decoded = [space.decode({LR: value})[LR] for value in (0.123456, 0.12344, 0.99999)]
    assert decoded == [0.1235, 0.12344, 0.99999]
    space = read_space(written(tmp_path, {LR: {"low": 0.0, "high": 1.0, "step": 0.1}}))
    assert space.decode({LR: 0.1 + 0.2})[LR] == 0.3


def test_corners_hold_each_end_once(tmp_path):
    space = read_space(written(tmp_path, {LR: {"low": 1, "high": 2}, "data.crop": [32, 64, 96]}))
    assert space.corners() == [{LR: 1, "data.crop": 32}, {LR: 2, "data.crop": 64}, {LR: 1, "data.crop": 96}]


def test_shipped_spaces_are_valid_and_named_where_one_is_missing(monkeypatch, tmp_path):
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)
    for path in sorted((CONFIGS / "tune").glob("*.yaml")):
        assert find_space("unet_mse", path.stem).distributions
    with pytest.raises(UserError, match=r'Did you mean "unet_mse"\? Choose one of .*optimizer'):
        find_space("unet_mes")
    with pytest.raises(UserError, match=r"data.batch_size is searched, and --data.batch_size sets it"):
        find_space("unet_mse", None, ["--data.batch_size=4"])
