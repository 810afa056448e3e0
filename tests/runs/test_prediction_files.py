"""What is written of a prediction: files, and a row of a table."""

import numpy as np
import pytest
from torch import nn

from project.tasks.segmentation import SegmentationTask

STATISTICS = {"image": [{"n": 1, "mean": 0, "std": 1}], "mask": {"0": 3, "1": 1}}


CLASSES = np.zeros((12, 14), int)
CLASSES[1:4, 1:4], CLASSES[1:4, 4:8], CLASSES[8:10, 2:4] = 1, 2, 2


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (
            ["background", "round", "budding"],
            {"background": "background", "has_instances": True},
            {"objects": 3, "objects/round": 1, "objects/budding": 2},
        ),
        (["a", "b"], {"has_instances": True, "background": "a"}, {"objects": 2}),
        (["a", "b"], {"objects": "components", "background": "b"}, {"objects": 1}),
        (["a", "b"], {"background": "a"}, {}),
    ],
)
def test_objects_are_counted_for_each_class(names, options, expected):
    task = SegmentationTask(nn.Identity(), statistics=STATISTICS, classes={"mask": names}, **options)
    classes = np.minimum(CLASSES, len(names) - 1)
    values = np.eye(len(names), dtype=np.float32)[classes].transpose(2, 0, 1)
    row = task.prediction_row(values, task.prediction_files(values))
    assert {name: n for name, n in row.items() if "objects" in name} == expected
    assert row[f"pixels/{names[-1]}"] == (classes == len(names) - 1).sum()
