"""Batches are the same by thread and processes, and the thread ends with the training."""

import gc
import threading
import time
import traceback

import albumentations as A
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader

from project.data.augment import GeometricAugmentation
from project.data.datamodule import ImageDataModule
from project.data.dataset import PREFETCH, SplitDataset, ThreadLoader, whole_batch
from project.data.samplers import ShuffledSampler
from project.data.store import SplitReader
from project.errors import UserError

FORK = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # DataLoader forks beside threads


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert threads() == []


@pytest.fixture
def dataset(tiny_dataset):
    turns = GeometricAugmentation([A.D4(p=1), A.Affine(rotate=(-30, 30), border_mode=4, p=1)])
    reader = SplitReader(tiny_dataset / "train.h5")
    return SplitDataset(reader, ("image", "target"), crop=16, crops_per_image=2, augmentation=turns, seed=3)


def options(dataset, batch_size=5):
    return {"sampler": ShuffledSampler(len(dataset), 3), "batch_size": batch_size, "drop_last": True}


def contents(batches):
    return [{name: tensor.numpy().tobytes() for name, tensor in batch.items()} for batch in batches]


def epochs_of(loader, n=2):
    found = []
    for epoch in range(n):
        loader.sampler.set_epoch(epoch)
        found.append(contents(loader))
    return found


@FORK
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_thread_and_processes_are_the_same(dataset, workers):
    expected = epochs_of(DataLoader(dataset, collate_fn=whole_batch, **options(dataset)))
    assert len(expected[0]) == 4
    assert expected[0] != expected[1]
    loader = ThreadLoader(dataset, **options(dataset))
    if workers:
        lasting = {"num_workers": workers, "persistent_workers": True, "collate_fn": whole_batch}
        loader = DataLoader(dataset, **lasting, **options(dataset))
    assert epochs_of(loader) == expected


def test_two_iterators_at_once_do_not_disturb_each_other(dataset):
    """Augmentation has a random state, which must not be shared by two threads."""
    expected = contents(DataLoader(dataset, collate_fn=whole_batch, **options(dataset)))
    loader = ThreadLoader(dataset, **options(dataset))
    pairs = list(zip(loader, loader, strict=True))
    assert contents(a for a, _ in pairs) == contents(b for _, b in pairs) == expected


def test_no_more_than_a_few_batches_are_made_ahead(dataset, monkeypatch):
    made = []
    original = SplitDataset.__getitems__
    monkeypatch.setattr(SplitDataset, "__getitems__", lambda self, keys: made.append(keys) or original(self, keys))
    loader = ThreadLoader(dataset, **options(dataset, 2))
    batches = iter(loader)
    assert not threads()
    assert not made  # Lightning makes iterators before it sets the epoch
    next(batches)
    deadline = time.monotonic() + 5
    while len(made) < 1 + PREFETCH and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 1 + PREFETCH
    batches.close()


def test_a_dropped_iterator_ends_its_thread(dataset):
    batches = iter(ThreadLoader(dataset, **options(dataset, 2)))
    next(batches)
    (thread,) = threads()
    del batches
    thread.join(timeout=5)
    assert not thread.is_alive()


class Failing(SplitDataset):
    def __getitems__(self, keys):
        if keys[0][1] == 10:
            raise UserError("this one cannot be read")
        return super().__getitems__(keys)


def test_an_error_in_the_thread_is_raised_where_the_batch_is_asked_for(tiny_dataset):
    dataset = Failing(SplitReader(tiny_dataset / "train.h5"), ("image",))
    batches = iter(ThreadLoader(dataset, sampler=[(0, i) for i in range(12)], batch_size=2))
    for _ in range(5):
        next(batches)
    with pytest.raises(UserError, match="this one cannot be read") as caught:
        next(batches)
    assert "raise UserError" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert not threads()


class Net(BoringModel):
    """Learns nothing, and is interrupted at the third step."""

    def training_step(self, batch, batch_idx):
        if self.global_step == 2:
            raise KeyboardInterrupt
        return self.layer.weight.sum()


def test_no_thread_is_left_after_an_interruption(tiny_dataset, make_trainer):
    trainer = make_trainer(max_epochs=2, limit_val_batches=0)
    with pytest.raises(SystemExit):
        trainer.fit(Net(), datamodule=ImageDataModule(tiny_dataset.name, str(tiny_dataset.parent), 2, roles=["image"]))
    gc.collect()
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()
