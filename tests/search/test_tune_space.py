"""What may be searched: refused before anything is trained."""

from pathlib import Path

import pytest
import yaml

from project.errors import UserError
from project.search.space import Choice, Range, check_metric, find_space, read_space

ROOT = Path(__file__).parents[2]
LR = "optimizer.init_args.lr"


def written(tmp_path, settings, **more):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({"space": settings, **more}))
    return path


def refused(path):
    with pytest.raises(UserError) as error:
        read_space(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"low": 1, "high": 1}, "must be less than high"),
        ({"low": 0.1, "high": 0.01}, "must be less than high"),
        ({"low": 0, "high": 1, "log": True}, "above 0"),
        ({"low": 1, "high": 9, "log": True, "step": 2}, "no step"),
        ({"low": 1, "high": 9, "step": 0}, "does not fit"),
        ({"low": 1, "high": 9, "step": 10}, "does not fit"),
        ({"low": 1, "high": 8, "step": 2}, "do not reach 8"),
        ({"low": 1, "high": float("inf")}, "high must be a number"),
        ({"low": "small", "high": 1}, "low must be a number"),
        ({"low": True, "high": 2}, "low must be a number"),
        ({"low": 1}, "write {low: 16, high: 32}"),
        ({"low": 1, "high": 2, "logg": True}, 'unknown key "logg". Did you mean "log"?'),
        ({"low": 1, "high": 2, "log": "yes, please"}, "log is true or false"),
        ({"values": [1, 2], "low": 0}, "write either a list"),
        ([16], "at least two values"),
        ([16, 32, 16], "no two the same"),
        (16, "write {low: 16, high: 32}"),
    ],
)
def test_impossible_ranges_are_refused(tmp_path, spec, told):
    assert told in refused(written(tmp_path, {LR: spec}))


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("optimiser.init_args.lr", 'Did you mean "optimizer"?'),
        ("optimizer", "is no key of"),
        ("seed_everything", "a seed is luck"),
        ("data.seed", "a seed is luck"),
        ("data.dataset", "could not be compared"),
        ("trainer.limit_val_batches", "could not be compared"),
        ("model.class_path", "could not be compared"),
    ],
)
def test_keys_that_make_no_sense_are_refused(tmp_path, key, told):
    assert told in refused(written(tmp_path, {key: [1, 2]}))


def test_a_loss_that_changes_its_meaning_ranks_nothing(tmp_path):
    settings = {"model.init_args.loss": ["torch.nn.MSELoss", "torch.nn.L1Loss"]}
    space = read_space(written(tmp_path, settings))
    with pytest.raises(UserError, match="validation losses that cannot be compared"):
        check_metric(space, "loss")
    check_metric(space, "mse")
    check_metric(read_space(written(tmp_path, {LR: [1, 2]})), "loss")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"metrik": "val/mse"}, 'Did you mean "metric"?'),
        ({"metric": "val/mse"}, "write both"),
        ({"metric": "val/mse", "mode": "smallest"}, "write both"),
        ({"prune": {"after": 2}}, "a share of the epochs"),
        ({"prune": {"before": 0.5}}, "prune: false"),
    ],
)
def test_the_rest_of_the_file(tmp_path, more, told):
    assert told in refused(written(tmp_path, {LR: [1, 2]}, **more))


def test_pruning_can_be_switched_off(tmp_path):
    assert read_space(written(tmp_path, {LR: [1, 2]}, prune=False)).prune_after is None
    assert read_space(written(tmp_path, {LR: [1, 2]}, prune={"after": 0.5})).prune_after == 0.5


def test_kinds_of_values(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "space:\n  optimizer.init_args.lr: {low: 1e-4, high: 1.0e-2, log: true}\n"
        "  data.batch_size: {low: 4, high: 64}\n"
        "  data.balanced: [true, false]\n  model.init_args.loss: [{class_path: a.B, init_args: {x: 1}}, a.C]\n"
    )
    space = read_space(path)
    rate, batch, balanced, loss = space.settings.values()
    assert (rate, batch) == (Range(1e-4, 1e-2, True), Range(4, 64))
    assert isinstance(balanced, Choice)
    assert [rate.whole, batch.whole] == [False, True]
    values = {LR: 1e-3, "data.batch_size": 8, "data.balanced": True, "model.init_args.loss": loss.values[0]}
    assert space.decode(space.code(values)) == values
    assert space.words(values) == [
        "--optimizer.init_args.lr=0.001",
        "--data.batch_size=8",
        "--data.balanced=true",
        '--model.init_args.loss={"class_path": "a.B", "init_args": {"x": 1}}',
    ]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        (Range(1, 5), 6),
        (Range(1, 5), 2.5),
        (Range(0.0, 1.0, step=0.25), 0.3),
        (Choice((1, 2)), "1"),
        (Range(0, 1), None),
    ],
)
def test_values_outside_are_not_in_the_space(setting, value):
    with pytest.raises(ValueError, match="is no"):
        setting.code(value)


def test_numbers_of_trials_can_be_written_down():
    assert Range(1e-4, 1e-2, True).decode(0.00123456789) == 0.001235
    assert Range(0.0, 1.0, step=0.1).decode(0.1 + 0.2) == 0.3
    # Rounding does not lead out of the range.
    assert Range(0.12344, 1.0).decode(0.12344) == 0.12344
    assert Range(0.5, 0.99999).decode(0.99999) == 0.99999


def test_corners_have_every_end_once(tmp_path):
    space = read_space(written(tmp_path, {LR: {"low": 1, "high": 2}, "data.crop": [32, 64, 96]}))
    assert space.corners() == [
        {LR: 1, "data.crop": 32},
        {LR: 2, "data.crop": 64},
        {LR: 1, "data.crop": 96},
    ]


def test_shipped_spaces_are_valid_and_others_are_named(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in sorted((ROOT / "configs/tune").glob("*.yaml")):
        assert find_space("unet_mse", path.stem).settings
    with pytest.raises(UserError, match=r"SPACE=, of .*unet_mse"):
        find_space("unet_mes")
