"""The classification task: one label, several labels, and what is made of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import nn

from project.data.datamodule import ImageDataModule
from project.data.store import SplitReader
from project.errors import UserError
from project.tasks.classification import ClassificationTask

THREE = {"n_labels": 3, "roles": ("image",), "n": {"train": 12, "val": 30, "test": 4}}


class Brightness(nn.Module):
    """Logits from the mean of the image: something between right and wrong."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(1, n_classes)

    def forward(self, x):
        return self.head(10 * x.mean((1, 2, 3))[:, None])


def module(folder, **options):
    data = ImageDataModule(folder.name, str(folder.parent), **{"batch_size": 4, "crop": 16, **options})
    data.roles = ClassificationTask.inputs
    return data


def facts(data):
    return {name: getattr(data, name) for name in ("statistics", "channels", "classes", "multi_label", "positive")}


def validate(make_trainer, data, task):
    make_trainer().validate(task, datamodule=data, verbose=False)
    return task.results


@pytest.mark.parametrize("tiny_dataset", [THREE], indirect=True)
def test_metrics_do_not_depend_on_the_batches(tiny_dataset, make_trainer):
    torch.manual_seed(0)
    net, results = Brightness(3), []
    for size in (1, 7, 30):
        data = module(tiny_dataset, eval_batch_size=size)
        results.append(validate(make_trainer, data, ClassificationTask(net, **facts(data))))
    first = results[0].metrics
    assert all(other.metrics == pytest.approx(first, rel=1e-6) for other in results)
    label = SplitReader(tiny_dataset / "val.h5").labels
    assert first["accuracy"] == pytest.approx(accuracy_score(label, results[0].rows["predicted"]))
    assert first["loss"] == pytest.approx(first["nll"], rel=1e-4)


@pytest.mark.parametrize("tiny_dataset", [THREE | {"n_labels": 2}], indirect=True)
def test_of_two_classes_the_positive_one_of_the_data_is_scored(tiny_dataset, make_trainer):
    data, net = module(tiny_dataset), Brightness(2)
    with torch.no_grad():  # normalized brightness decides: neither always nor never
        net.head.weight[:], net.head.bias[:] = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, 0.0])
    metrics = validate(make_trainer, data, ClassificationTask(net, **facts(data))).metrics
    assert metrics["f1"] == metrics["f1/bright"] != metrics["f1/dark"]
    with pytest.raises(UserError, match="no class is called grey"):
        ClassificationTask(net, **facts(data) | {"positive": "grey"})


def several(**options):
    statistics = {"image": [{"n": 1, "mean": 0, "std": 1}], "label": {"a": 4, "b": 2, "c": 1}, "n_samples": 8}
    classes = {"label": ["a", "b", "c"]}
    return ClassificationTask(nn.Identity(), statistics=statistics, classes=classes, multi_label=True, **options)


def test_several_labels_per_image():
    task = several()
    label = torch.tensor([[1, 0, 1], [0, 0, 0]])
    assert task.make_target({"label": label}).dtype == torch.float32
    probabilities = task.decode_output(torch.tensor([[2.0, -2.0, 1.0], [-1.0, 3.0, -1.0]]))
    assert torch.allclose(probabilities[0], torch.tensor([2.0, -2.0, 1.0]).sigmoid())
    rows = {k: v.double() for k, v in task.metrics.columns(probabilities, {"label": label}).items()} | {
        "loss": torch.zeros(len(label))
    }
    metrics, _ = task.metrics.aggregate(rows)
    assert metrics["exact_match"] == 0.5
    assert metrics["accuracy"] == pytest.approx(5 / 6)
    assert task.metrics.metrics[0].details(rows) == {}
    assert "ece" in task.draw_summary(SimpleNamespace(rows=rows)).axes[0].get_title()
    checkpoint = {}
    task.on_save_checkpoint(checkpoint)
    again = ClassificationTask(nn.Identity(), **checkpoint["data"])
    assert again.multi_label


def test_wrong_number_of_outputs_is_reported_with_the_classes():
    with pytest.raises(UserError, match=r"gives \(5,\) per image, but 3 are needed: a, b, c"):
        several().decode_output(torch.zeros(2, 5))


def test_a_dataset_without_labels_is_refused(tiny_dataset):
    data = ImageDataModule(tiny_dataset.name, str(tiny_dataset.parent))
    with pytest.raises(UserError, match="no labels"):
        ClassificationTask(nn.Identity(), statistics=data.statistics, classes={})
    data.roles = ClassificationTask.inputs
    with pytest.raises(UserError, match="no label"):
        data.setup("fit")


@pytest.mark.parametrize("tiny_dataset", [THREE], indirect=True)
def test_pictures_tell_right_from_wrong(tiny_dataset, make_trainer):
    data = module(tiny_dataset)
    task = ClassificationTask(Brightness(3), **facts(data))
    results = validate(make_trainer, data, task)
    names = data.classes["label"]
    samples = [
        {"id": str(i), "image": np.arange(24).reshape(1, 4, 6), "label": label, "prediction": np.array(p)}
        for i, (label, p) in enumerate([(0, [0.8, 0.1, 0.1]), (2, [0.3, 0.6, 0.1])])
    ]
    figure = task.draw(samples)
    assert figure.axes[0].get_title() == f"{names[0]}\npredicted: {names[0]} 80%"
    assert figure.axes[1].get_title() == f"{names[2]}\npredicted: {names[1]} 60%"
    frames = [axis.spines["top"].get_edgecolor() for axis in figure.axes[:2]]
    assert frames[1][:3] == (1.0, 0.0, 0.0)
    assert frames[0][:3] != frames[1][:3]
    summary = task.draw_summary(results)
    shown = sum(int(text.get_text()) for text in summary.axes[0].texts)
    assert shown == 30
