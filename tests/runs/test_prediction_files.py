"""What is written of a prediction: files, and a row of a table."""

import numpy as np
import pytest
from torch import nn

from project.tasks.segmentation import SegmentationTask

STATISTICS = {"image": [{"n": 1, "mean": 0, "std": 1}], "mask": {"0": 3, "1": 1}}


def task(names, **options):
    return SegmentationTask(nn.Identity(), statistics=STATISTICS, classes={"mask": names}, **options)


def probabilities(classes, n):
    return np.eye(n, dtype=np.float32)[classes].transpose(2, 0, 1)


CLASSES = np.zeros((12, 14), int)
CLASSES[1:4, 1:4], CLASSES[1:4, 4:8], CLASSES[8:10, 2:4] = 1, 2, 2


def test_objects_are_counted_for_each_class():
    own = task(["background", "round", "budding"], background="background", has_instances=True)
    values = probabilities(CLASSES, 3)
    files = own.prediction_files(values)
    row = own.prediction_row(values, files)
    assert row["pixels/budding"] == 12 + 4
    assert (row["objects"], row["objects/round"], row["objects/budding"]) == (3, 1, 2)
    assert "objects/background" not in row


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"has_instances": True, "background": "a"}, {"objects": 2}),
        ({"objects": "components", "background": "b"}, {"objects": 1}),
        ({"background": "a"}, {}),
    ],
)
def test_a_single_class_of_objects_has_one_count(options, expected):
    own = task(["a", "b"], **options)
    values = probabilities(np.minimum(CLASSES, 1), 2)
    row = own.prediction_row(values, own.prediction_files(values))
    assert {name: n for name, n in row.items() if "objects" in name} == expected
