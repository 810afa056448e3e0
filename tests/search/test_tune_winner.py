"""The winner's file is the searched one but for its values."""

from pathlib import Path

import pytest
import yaml

from project.errors import UserError
from project.search.best_config import changed, edited, write_winner

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "configs/experiments/unet_mse.yaml").read_text()
CHANGES = {
    "optimizer.init_args.lr": 0.004512,
    "optimizer.init_args.weight_decay": 1e-5,
    "optimizer.init_args.betas": [0.9, 0.99],
    "model.init_args.net.init_args.width": 24,
    "data.crops_per_image": 2,
    "model.init_args.loss.init_args.reduction": "sum",
    "lr_scheduler.init_args.warmup": 0.1,
    "checkpoint.monitor": "val/mse",
}


def test_only_the_lines_with_changes_differ_and_say_what_was_there():
    text = edited(TEXT, CHANGES, "mine")
    assert yaml.safe_load(text) == changed(yaml.safe_load(TEXT), CHANGES)
    old, new = TEXT.splitlines(), text.splitlines()
    gone, come = [line for line in old if line not in new], [line for line in new if line not in old]
    assert [line.strip() for line in gone] == [
        "init_args: {in_channels: 1, out_channels: 1, width: 16, depth: 3}",
        "loss: torch.nn.MSELoss",
        "init_args: {lr: 3.0e-3, weight_decay: 1.0e-4}",
    ]
    assert "  # study mine: lr was 3.0e-3; weight_decay was 1.0e-4; betas was not set" in come
    assert "  init_args: {lr: 0.004512, weight_decay: 1.0e-05, betas: [0.9, 0.99]}" in come
    assert len(come) == 12


TRAINED = [path for path in sorted((ROOT / "configs/experiments").glob("*.yaml")) if "\noptimizer:" in path.read_text()]


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_every_experiment_can_be_edited(path):
    changes = {"optimizer.init_args.lr": 1e-7, "data.batch_size": 3, "trainer.max_epochs": 7}
    text = edited(path.read_text(), changes, "mine")
    assert yaml.safe_load(text) == changed(yaml.safe_load(path.read_text()), changes)
    assert text.count("# study mine: ") == 3


def test_what_cannot_be_edited_is_written_anew(tmp_path):
    path, changes = tmp_path / "x_tuned.yaml", {"trainer.a": 1, "trainer.b": 2, "data.c": 3}
    write_winner(path, "data: {}\nmodel: &m {x: 1}\nother: *m\n", changes, ["best of 3"], "mine")
    assert path.read_text().startswith('# Found by the study "mine": best of 3\n')
    assert yaml.safe_load(path.read_text()) == {
        "data": {"c": 3},
        "model": {"x": 1},
        "other": {"x": 1},
        "trainer": {"a": 1, "b": 2},
    }


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path):
    path = tmp_path / "x_tuned.yaml"
    path.write_text("# my own\ndata: {}\n")
    with pytest.raises(UserError, match="rename it"):
        write_winner(path, "data: {}\n", {"data.c": 3}, ["best of 3"], "mine")
    assert path.read_text() == "# my own\ndata: {}\n"
    path.unlink()
    write_winner(path, "data: {}\n", {"data.c": 3}, ["best of 3"], "mine")
    write_winner(path, "data: {}\n", {"data.c": 4}, ["best of 4"], "mine")
    assert yaml.safe_load(path.read_text()) == {"data": {"c": 4}}
