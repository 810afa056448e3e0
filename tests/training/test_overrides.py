"""Options that override a configuration."""

import json

import pytest
import yaml

from project.errors import UserError
from project.training import overrides

CONTENT = {
    "data": {"dataset": "a", "fold": 1},
    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003, "weight_decay": 0.1}},
    "model": {
        "class_path": "some.Task",
        "init_args": {
            "net": {"class_path": "some.Net", "init_args": {"width": 16}},
            "loss": "torch.nn.MSELoss",
            "pretrained": {"file": "runs/one/latest", "part": "encoder"},
        },
    },
}


def parsed(*words: str) -> tuple[dict, list[str]]:
    """The configuration that the parser is given for some options, and what follows it."""
    first, *others = overrides.parser_arguments([f"--config={json.dumps(CONTENT)}", *words])
    return yaml.safe_load(first.removeprefix("--config=")), others


def test_the_last_value_wins_and_a_value_is_no_option():
    words = ["--logger", "tensorboard", "--data.fold=2", "--print_config", "--data.fold", "3", "--logger=none"]
    assert overrides.last_value(words, "--data.fold") == "3"
    assert overrides.last_value(["--data.root", "a", "--data.dataset", "data"], "--data.dataset") == "data"


@pytest.mark.parametrize(
    ("words", "section", "expected"),
    [
        (["--data.dataset", "b", "--data.dataset=c"], "data", {"dataset": "c", "fold": 1}),
        (["--data", "{dataset: b}"], "data", {"dataset": "b", "fold": 1}),
        (["--data.fold", "null"], "data", {"dataset": "a", "fold": None}),
        (["--config", "{data: {fold: 4}}", "--data.dataset", "b"], "data", {"dataset": "b", "fold": 4}),
    ],
)
def test_a_configuration_with_its_overrides(words, section, expected):
    assert overrides.apply_overrides(CONTENT, words)[section] == expected
    assert CONTENT["data"] == {"dataset": "a", "fold": 1}


@pytest.mark.parametrize("typed", [["trainer.max_epochs=3"], ["trainer.max_epochs", "3"], ["-trainer.max_epochs", "3"]])
def test_a_word_that_is_not_an_option_is_refused_with_a_hint(typed):
    with pytest.raises(UserError, match=r"write --trainer.max_epochs"):
        overrides.last_value(["--data.fold", "1", *typed], "--data.fold")


def test_negative_numbers_and_lists_reach_the_parser():
    content, words = parsed("--optimizer.init_args.lr", "-1e-4", "--data.transforms", "[a]", "--data.dataset", "2024")
    assert words == ["--optimizer.init_args.lr=-1e-4", "--data.dataset=2024"]
    assert content["data"]["transforms"] == ["a"]


def test_a_later_section_wins_over_an_earlier_value():
    content, words = parsed("--data.fold", "3", "--data", "{fold: 4}")
    assert (content["data"]["fold"], words) == (4, [])


@pytest.mark.parametrize(
    "words",
    [
        ["--optimizer.class_path", "torch.optim.SGD"],
        ["--optimizer=torch.optim.SGD"],
        ["--optimizer", "SGD"],
        ["--optimizer", "{class_path: torch.optim.SGD}"],
        ["--config", "{optimizer: {class_path: torch.optim.SGD}}"],
    ],
)
def test_a_class_that_replaces_another_keeps_none_of_its_arguments(words):
    content, _ = parsed(*words)
    assert content["optimizer"] in ({"class_path": "torch.optim.SGD"}, {"class_path": "SGD"})
    assert content["model"] == CONTENT["model"]


@pytest.mark.parametrize(
    ("words", "lr"),
    [
        (["--optimizer", "torch.optim.AdamW"], 0.003),
        (["--config", "{optimizer: {init_args: {lr: 1}}}"], 1),
        (["--data.dataset", "torch.optim.SGD"], 0.003),
    ],
)
def test_the_same_class_keeps_its_arguments(words, lr):
    assert parsed(*words)[0]["optimizer"]["init_args"] == {"lr": lr, "weight_decay": 0.1}


def test_a_class_inside_another_is_replaced_alone():
    content, _ = parsed("--model.init_args.net", "mine.Net")
    assert content["model"]["init_args"] == {**CONTENT["model"]["init_args"], "net": {"class_path": "mine.Net"}}


def test_another_task_keeps_network_and_loss():
    content, _ = parsed("--model.class_path", "mine.Task")
    assert content["model"] == {**CONTENT["model"], "class_path": "mine.Task"}
