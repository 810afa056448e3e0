"""Plans as files: what is in them, what overwrites them, and what changed data does to them."""

import pytest
import yaml
from fingerprints import OBJECTS, fingerprint

from project.errors import UserError
from project.planning.decisions import decide_all, possible_tasks
from project.planning.fingerprint import measure_fingerprint
from project.planning.machine import Machine
from project.planning.plan import check_planned, plan_text, write_plan


@pytest.mark.parametrize("role", ["target", "mask", "label", "value", "image"])
def test_a_plan_holds_each_decision_with_its_reason(role):
    data = fingerprint(role, objects=OBJECTS if role == "mask" else None)
    text, task = plan_text(data, Machine(), possible_tasks(data)[0], 20), possible_tasks(data)[0]
    content = yaml.safe_load(text)
    for key, choice in decide_all(data, Machine(), task, 20).items():
        section = content
        for name in key.split("."):
            section = section[name]
        assert section == choice.value
        words = [word for word in choice.reason.split() if word != "#"]
        assert all(word in text for word in words)
    assert 15 <= len(text.splitlines()) <= 45


def test_a_plan_is_replaced_until_somebody_edits_it(tmp_path):
    path = tmp_path / "mine.yaml"
    texts = [plan_text(fingerprint(), Machine(), "translation", minutes) for minutes in (10, 20)]
    for text in texts:
        write_plan(path, text)
    assert path.read_text() == texts[1]
    path.write_text(texts[1].replace("width: 16", "width: 24"))
    edited = path.read_text()
    with pytest.raises(UserError, match="changed by hand"):
        write_plan(path, texts[0])
    assert path.read_text() == edited


def test_an_experiment_without_a_plan_is_never_replaced(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {dataset: mine}\n")
    with pytest.raises(UserError, match="changed by hand"):
        write_plan(path, plan_text(fingerprint(), Machine(), "translation", 10))


def test_a_plan_knows_the_data_that_it_was_made_for(tmp_path, make_dataset):
    path, folder = tmp_path / "mine.yaml", make_dataset(shape=(40, 40))
    write_plan(path, plan_text(measure_fingerprint(folder), Machine(), "translation", 10))
    assert check_planned(path, folder) is None
    more = make_dataset(shape=(40, 40), n={"train": 14, "val": 5, "test": 4})
    assert "training images 12, now 14" in (check_planned(path, more) or "")
    colored = make_dataset(shape=(40, 40), channels=3)
    with pytest.raises(UserError, match="image 1 channel, now 3 channels"):
        check_planned(path, colored)
    path.write_text("data: {dataset: mine}\n")
    assert check_planned(path, colored) is None
