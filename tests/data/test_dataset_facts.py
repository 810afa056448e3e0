"""Facts about a dataset, and the channels of a network that tasks read off them."""

import pytest

from project.data.dataset_facts import dataset_facts
from project.tasks.classification import ClassificationTask
from project.tasks.masked import MaskedImageTask
from project.tasks.regression import RegressionTask
from project.tasks.segmentation import SegmentationTask
from project.tasks.translation import TranslationTask

ROLES = ("image", "target", "mask", "instances")
DATA = {"channels": 3, "target_channels": 2, "roles": ROLES, "n_labels": 4, "n_values": 5}


@pytest.mark.parametrize("tiny_dataset", [DATA | {"sizes": {"train": [(40, 50)] * 11 + [(30, 70)]}}], indirect=True)
def test_facts_say_what_a_dataset_has(tiny_dataset):
    facts = dataset_facts(tiny_dataset)
    assert facts.available_roles == (*ROLES, "label", "value")
    assert facts.n_channels == {"image": 3, "target": 2, "value": 5}
    assert (facts.sizes[0], facts.sizes[-1], len(facts.sizes)) == ((40, 50), (30, 70), 12)
    assert (facts.multi_label, facts.has_instances, facts.background) == (False, True, "dark")


@pytest.mark.parametrize("tiny_dataset", [DATA], indirect=True)
@pytest.mark.parametrize(
    ("task", "options", "outputs"),
    [
        (TranslationTask, {}, 2),
        (SegmentationTask, {}, 2),
        (SegmentationTask, {"objects": "depth"}, 3),
        (ClassificationTask, {}, 4),
        (RegressionTask, {}, 5),
        (MaskedImageTask, {}, 3),
    ],
)
def test_a_task_knows_the_channels_of_its_network(tiny_dataset, task, options, outputs):
    assert task.network_channels(dataset_facts(tiny_dataset), options) == (3, outputs)


def test_boundaries_need_instances():
    assert SegmentationTask.needed_inputs({"objects": "depth"}) == ("image", "mask", "instances")
    assert SegmentationTask.needed_inputs({}) == ("image", "mask")
