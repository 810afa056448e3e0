"""Batches are the same whoever makes them, and what makes them ends with the training."""

import gc
import pickle
import threading
import time
import traceback
import weakref

import albumentations as A
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

from project.data import loader as loading
from project.data.augment import GeometricAugmentation
from project.data.buffers import KEPT, Buffers
from project.data.datamodule import ImageDataModule
from project.data.dataset import ShuffledSampler, SplitDataset
from project.data.loader import AHEAD, Choice, MeasuringLoader, ThreadLoader, Timing, as_it_is, choose, usable_cores
from project.data.store import SplitReader
from project.errors import UserError

FORK = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # DataLoader forks beside threads


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "reading"]


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
@pytest.mark.parametrize("kind", ["thread", "measuring", "chosen", 1, 2])
def test_batches_are_the_same_whoever_makes_them(dataset, kind, monkeypatch):
    expected = epochs_of(DataLoader(dataset, collate_fn=as_it_is, **options(dataset)))
    assert len(expected[0]) == 4
    assert expected[0] != expected[1]
    if kind == "thread":
        loader = ThreadLoader(dataset, **options(dataset))
    elif kind == "measuring":
        loader = MeasuringLoader(dataset, True, **options(dataset))
    elif kind == "chosen":
        monkeypatch.setattr(Timing, "enough", property(lambda timing: timing.batches >= 1))
        monkeypatch.setattr(loading, "choose", lambda *_: Choice(2, 9.0, 1.0))
        loader = MeasuringLoader(dataset, True, **options(dataset))
    else:
        loader = DataLoader(dataset, collate_fn=as_it_is, num_workers=kind, persistent_workers=True, **options(dataset))
    assert epochs_of(loader) == expected
    assert kind != "chosen" or loader.choice == Choice(2, 9.0, 1.0)


@pytest.mark.slow
def test_batches_of_spawned_processes_are_the_same(dataset):
    expected = epochs_of(ThreadLoader(dataset, **options(dataset)))
    workers = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "spawn"}
    assert epochs_of(DataLoader(dataset, collate_fn=as_it_is, **workers, **options(dataset))) == expected


def test_two_iterators_at_once_do_not_disturb_each_other(dataset):
    """Augmentation has a random state, which must not be shared by two threads."""
    expected = contents(DataLoader(dataset, collate_fn=as_it_is, **options(dataset)))
    loader = ThreadLoader(dataset, **options(dataset))
    pairs = list(zip(loader, loader, strict=True))
    assert contents(a for a, _ in pairs) == contents(b for _, b in pairs) == expected


def test_a_thread_shares_the_reader_and_has_its_own_random_state_and_memory(dataset):
    other = dataset.for_thread()
    assert other.reader is dataset.reader
    assert other._buffers is not dataset._buffers
    mine, its = (set(map(id, vars(each.augmentation).values())) for each in (dataset, other))
    assert not mine & its


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
    while len(made) < 1 + AHEAD and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 1 + AHEAD
    batches.close()


def test_an_iterator_that_is_dropped_ends_its_thread(dataset):
    batches = iter(ThreadLoader(dataset, **options(dataset, 2)))
    next(batches)
    (thread,) = threads()
    del batches
    thread.join(timeout=5)
    assert not thread.is_alive()


def test_the_thread_ends_with_the_epoch(dataset):
    assert len(list(ThreadLoader(dataset, **options(dataset)))) == 4
    assert not threads()


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


class Net(pl.LightningModule):
    """Learns nothing; does at some step what it is told."""

    def __init__(self, at=None, act=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.at, self.act, self.seen, self.validated = at, act, [], 0

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["image"].numpy().tobytes())
        if self.act and self.global_step == self.at:
            self.act()
        return self.weight

    def validation_step(self, batch, batch_idx):
        self.validated += len(batch["index"])
        if self.act and self.at is None:
            self.act()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data_of(folder, **changed):
    data = ImageDataModule(folder.name, str(folder.parent), batch_size=2, **changed)
    data.roles = ("image",)
    return data


def interrupt():
    raise KeyboardInterrupt


def fail():
    raise RuntimeError("no")


@pytest.mark.parametrize(
    "limits",
    [
        {"max_epochs": 2},
        {"fast_dev_run": True},
        {"max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1},
        {"max_steps": 3},
        {"max_epochs": 2, "val_check_interval": 2},
    ],
)
def test_nothing_is_left_after_training(tiny_dataset, make_trainer, limits):
    data, net = data_of(tiny_dataset, eval_batch_size=2), Net()
    trainer = make_trainer(**limits)
    trainer.fit(net, datamodule=data)
    assert isinstance(data.measuring, MeasuringLoader)
    assert net.seen
    assert not threads()


@pytest.mark.parametrize(("act", "error"), [(interrupt, SystemExit), (fail, RuntimeError)])
@pytest.mark.parametrize("at", [2, None])
def test_nothing_is_left_after_an_interruption(tiny_dataset, make_trainer, act, error, at):
    trainer = make_trainer(max_epochs=2)
    with pytest.raises(error):
        trainer.fit(Net(at, act), datamodule=data_of(tiny_dataset))
    gc.collect()
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()


def test_training_under_lightning_sees_the_same_with_and_without_a_thread(tiny_dataset, make_trainer):
    """Also that Lightning sets the epoch on the sampler: the epochs differ."""
    seen = []
    for workers in (0, "auto"):
        net = Net()
        make_trainer(max_epochs=2).fit(net, datamodule=data_of(tiny_dataset, crop=16, num_workers=workers))
        assert net.validated == 3 * 5 - (5 if net.trainer.num_sanity_val_steps == 0 else 0)
        seen.append(net.seen)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 12


# What is chosen -------------------------------------------------------------------------------------------------------


def timed(batch, step):
    """A thread that takes `batch` seconds for a batch, and a training that takes `step`."""
    return Timing(10, 10 * batch, 10 * max(batch - step, 0), 10 * max(batch, step))


@pytest.mark.parametrize(
    ("batch", "step", "cores", "on_cpu", "expected"),
    [
        (0.01, 0.5, 16, False, 0),  # the thread waits for the device
        (0.1, 0.1, 16, False, 0),
        (0.1, 0.03, 16, False, 5),  # 0.12 s of work for each 0.03 s, and one to spare
        (1.0, 0.001, 16, False, 15),  # one core is left for the training process
        (1.0, 0.001, 2, False, 0),  # one process is not faster than one thread
        (1.0, 0.001, 2, True, 2),
        (0.1, 0.05, 2, True, 0),  # processes would take the cores from the network
        (1.0, 0.1, 1, True, 0),
    ],
)
def test_processes_are_chosen_where_they_pay(batch, step, cores, on_cpu, expected):
    choice = choose(timed(batch, step), cores, on_cpu)
    assert choice.num_workers == expected
    assert (choice.batch_ms, choice.step_ms) == pytest.approx((1000 * batch, 1000 * step))


def test_without_a_measurement_it_is_a_thread():
    assert choose(Timing(), 64, False) == Choice(0)
    assert "too few batches" in Choice(0).told(4)


def test_cores_are_shared_among_training_processes():
    assert usable_cores(10**6) == 1
    assert 1 <= usable_cores(2) <= usable_cores()


class Slow(SplitDataset):
    def __getitems__(self, keys):
        time.sleep(0.02)
        return super().__getitems__(keys)


@pytest.mark.parametrize("step", [0.0, 0.04])
def test_timing_of_a_thread(tiny_dataset, step):
    dataset = Slow(SplitReader(tiny_dataset / "train.h5"), ("image",))
    loader = ThreadLoader(dataset, sampler=[(0, i) for i in range(12)], batch_size=1)
    for _ in loader:
        time.sleep(step)
    timing = loader.timing
    assert timing.batches == 11
    assert timing.making >= 11 * 0.02
    assert timing.total >= 11 * max(step, 0.015)
    assert (timing.waited > timing.total / 2) == (step == 0)


@FORK
def test_the_choice_is_made_once_told_and_kept(dataset, monkeypatch):
    monkeypatch.setattr(loading, "FEWEST", 1)
    monkeypatch.setattr(loading, "MEASURED", 0.0)
    told = []
    monkeypatch.setattr(loading.log, "info", told.append)
    loader = MeasuringLoader(dataset, True, **options(dataset))
    assert loader.choice is None
    for _ in range(2):
        list(loader)
    assert loader.choice.batch_ms > 0
    assert told == [loader.choice.told(5)]
    assert "ms per batch of 5" in told[0]


def test_what_stands_in_the_provenance(tiny_dataset):
    data = data_of(tiny_dataset)
    assert data.reading == {"auto": True, "thread": True, "num_workers": 0, "batch_ms": None, "step_ms": None}
    data.setup("fit")
    assert isinstance(data.train_dataloader(), MeasuringLoader)
    assert isinstance(data.val_dataloader(), ThreadLoader)
    data.measuring.choice = Choice(3, 1.0, 0.1)
    assert data.reading == {"auto": True, "thread": False, "num_workers": 3, "batch_ms": 1.0, "step_ms": 0.1}
    assert data_of(tiny_dataset, num_workers=2).reading == {"num_workers": 2}
    plain = data_of(tiny_dataset, num_workers=0)
    plain.setup("fit")
    assert type(plain.train_dataloader()) is type(plain.val_dataloader()) is DataLoader


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hold", [lambda t: t[1:], lambda t: t.numpy()[2:], lambda t: t.view(24), torch.utils.dlpack.from_dlpack]
)
def test_memory_is_used_again_only_when_nobody_holds_it(hold):
    buffers = Buffers()
    tensor = buffers.empty((4, 6), np.dtype(np.int16))
    address, held = tensor.data_ptr(), hold(tensor)
    del tensor
    gc.collect()
    assert buffers.empty((4, 6), np.dtype(np.int16)).data_ptr() != address
    assert len(held) in (2, 3, 4, 24)


def test_memory_that_is_free_is_used_again():
    buffers = Buffers()
    addresses = set()
    for shape in ((3, 8), (8, 3), (24,)) * 5:
        tensor = buffers.empty(shape, np.dtype(np.float32))
        assert (tuple(tensor.shape), tensor.dtype) == (shape, torch.float32)
        addresses.add(tensor.data_ptr())
        del tensor
    assert len(addresses) == 1


def test_memory_of_batches_that_are_gone_is_given_back():
    buffers = Buffers()
    held = [buffers.empty((100,), np.dtype(np.uint8)) for _ in range(3 * KEPT)]
    assert len(buffers._kept) == KEPT
    arrays = [weakref.ref(each.array) for each in buffers._kept]
    held.clear()
    buffers.empty((50,), np.dtype(np.uint8))
    assert [each for each in arrays if each() is not None] == []


def test_large_memory_is_laid_out_in_whole_pages():
    tensor = Buffers().empty((3, 2**20), np.dtype(">u2"))
    assert tensor.data_ptr() % 2**21 == 0
    assert tensor.dtype == torch.uint16


def test_a_dataset_is_pickled_without_its_memory(dataset):
    dataset.__getitems__([(0, i) for i in range(12)])
    assert not pickle.loads(pickle.dumps(dataset))._buffers._kept


def test_batches_that_are_kept_do_not_change(dataset):
    sampler = BatchSampler(ShuffledSampler(len(dataset), 3), 5, True)
    batches = [dataset.__getitems__(keys) for keys in sampler]
    assert contents(batches) == contents(dataset.__getitems__(keys) for keys in sampler)
