from types import SimpleNamespace

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from project.data import datamodule
from project.data.datamodule import ImageDataModule
from project.data.split_writer import write_split
from project.data.store import SplitReader
from project.errors import UserError


def module(folder, **options):
    return ImageDataModule(dataset=folder.name, root=str(folder.parent), **{"batch_size": 4, **options})


def on_devices(data, rank, world_size, use_distributed_sampler=False):
    """Gives the datamodule a trainer with several devices."""
    data.trainer = SimpleNamespace(
        world_size=world_size,
        global_rank=rank,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        _accelerator_connector=SimpleNamespace(use_distributed_sampler=use_distributed_sampler),
    )
    return data


@pytest.mark.parametrize("tiny_dataset", [{"n_values": 2}], indirect=True)
def test_numbers_per_image_are_in_batches_with_names_and_training_statistics(tiny_dataset):
    data = ImageDataModule(tiny_dataset.name, str(tiny_dataset.parent), batch_size=4, crop=16, roles=["image", "value"])
    data.setup("fit")
    for batch, reader in (
        (next(iter(data.train_dataloader())), data.reader("train")),
        (next(iter(data.val_dataloader())), data.reader("val")),
    ):
        assert set(batch) == {"image", "value", "index", "image_statistics"}
        np.testing.assert_array_equal(batch["value"], reader.values[batch["index"]].astype(np.float32))
        assert batch["value"].dtype == torch.float32
    assert data.channels["value"] == ["value0", "value1"]
    values = data.reader("train").values
    assert data.statistics["value"][1] == {n: getattr(values[:, 1], n)() for n in ("mean", "std", "min", "max")}


def test_roles_are_by_default_all_arrays_or_those_of_the_task_that_is_fitted(tiny_dataset):
    data = ImageDataModule(tiny_dataset.name, str(tiny_dataset.parent))
    assert data.roles == ("image", "target")
    task = Memory()
    task.inputs, task.optional_inputs = ("image",), ("target",)
    data.trainer = SimpleNamespace(lightning_module=task)
    assert data.roles == ("image",)
    data.setup("validate")
    assert data.datasets["val"].roles == ("image", "target")
    data.roles = ("image", "value")
    with pytest.raises(UserError, match="has no value"):
        data.setup("fit")


def test_only_the_files_of_a_stage_are_opened(tiny_dataset, monkeypatch):
    opened = []

    class Spy(SplitReader):
        def __init__(self, path):
            opened.append(path.name)
            super().__init__(path)

    monkeypatch.setattr(datamodule, "SplitReader", Spy)
    data = module(tiny_dataset)
    data.setup("fit")
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert opened == ["train.h5", "val.h5"]
    (tiny_dataset / "test.h5").write_bytes(b"not HDF5")
    with pytest.raises(UserError, match=r"test\.h5"):
        data.setup("test")


@pytest.mark.parametrize("split", ["val", "test", "train"])
def test_evaluation_sees_whole_raw_images_once_without_augmentation(tiny_dataset, split):
    data = module(tiny_dataset, crop=16, crops_per_image=3, transforms=[A.D4(p=1)], eval_batch_size=2)
    data.setup("fit")
    data.setup("test")
    reader = SplitReader(tiny_dataset / f"{split}.h5")
    seen = []
    for batch in data.eval_dataloader(split):
        for position, index in enumerate(batch["index"].tolist()):
            seen.append(index)
            for role in ("image", "target"):
                assert batch[role].dtype == torch.uint16
                np.testing.assert_array_equal(batch[role][position].numpy(), reader.read(role, index))
    assert seen == list(range(len(reader)))


def test_a_batch_larger_than_the_split_is_refused(tiny_dataset):
    for batch_size, n_devices, n_samples in ((13, 1, 12), (7, 2, 6)):
        data = on_devices(module(tiny_dataset, batch_size=batch_size), 0, n_devices)
        data.setup("fit")
        for check in (lambda d=data, n=n_devices: d.check_training(n), data.train_dataloader):
            with pytest.raises(UserError, match=rf"batch_size is {batch_size}, but an epoch has {n_samples} samples"):
                check()


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"eval_batch_size": -1}, {"num_workers": -1}])
def test_numbers_out_of_range_are_refused(tiny_dataset, option):
    ((name, number),) = option.items()
    with pytest.raises(UserError, match=f"data.{name} is {number}: write"):
        ImageDataModule("set0", str(tiny_dataset.parent), **option)


@pytest.mark.parametrize(
    "tiny_dataset", [{"n": {"train": 3, "val": 1}, "sizes": {"train": [(16, 20), (20, 16), (16, 20)]}}], indirect=True
)
def test_training_on_whole_images_of_different_sizes_is_refused(tiny_dataset):
    data = module(tiny_dataset, batch_size=1)
    data.setup("fit")
    with pytest.raises(UserError, match=r"set `data\.crop`"):
        data.train_dataloader()
    data = module(tiny_dataset, batch_size=1, crop=16)
    data.setup("fit")
    data.check_training()


@pytest.mark.parametrize("other", [{"split_seed": 1}, {"seed": 1}], ids=["another split", "other images"])
def test_splits_of_different_preparations_are_refused(make_dataset, other):
    folder, second = make_dataset(), make_dataset(**other)
    (second / "val.h5").replace(folder / "val.h5")
    with pytest.raises(UserError, match="different preparations"):
        module(folder).setup("fit")


def test_devices_share_the_samples(tiny_dataset):
    train, val = [], []
    for rank in range(2):
        data = on_devices(module(tiny_dataset, batch_size=2, eval_batch_size=2), rank, 2)
        data.setup("fit")
        train.append([i for batch in data.train_dataloader() for i in batch["index"].tolist()])
        val.append([i for batch in data.val_dataloader() for i in batch["index"].tolist()])
    assert [len(part) for part in train] == [6, 6]
    assert sorted(train[0] + train[1]) == list(range(12))
    assert [len(part) for part in val] == [3, 2]
    assert sorted(val[0] + val[1]) == list(range(5))


def test_the_distributed_sampler_of_lightning_is_refused(tiny_dataset):
    data = on_devices(module(tiny_dataset), 0, 2, use_distributed_sampler=True)
    data.setup("fit")
    for loader in (data.train_dataloader, data.val_dataloader):
        with pytest.raises(UserError, match="use_distributed_sampler must be false"):
            loader()
    # With one device it does nothing.
    on_devices(data, 0, 1, use_distributed_sampler=True).train_dataloader()


def test_more_devices_than_images_are_refused(tiny_dataset):
    """A device without a batch would leave out the joint end of validation, and the others would wait for it."""
    data = on_devices(module(tiny_dataset, batch_size=1), 0, 6)
    data.setup("fit")
    with pytest.raises(UserError, match="val has 5 images for 6 devices"):
        data.val_dataloader()


class Memory(BoringModel):
    """Learns nothing, and remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.epochs = {}

    def training_step(self, batch, batch_idx):
        images = [image.numpy().tobytes() for image in batch["image"]]
        self.epochs.setdefault(self.current_epoch, []).extend(zip(batch["index"].tolist(), images, strict=True))
        return self.layer.weight.sum()


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_under_lightning_differ_in_order_and_augmentation(tiny_dataset, make_trainer, workers):
    """albumentations 2.0.8 alone repeats its random numbers in every worker, and in every epoch."""
    transforms = [A.Affine(rotate=(-30, 30), border_mode=cv2.BORDER_REFLECT_101, p=1)]
    data = module(tiny_dataset, transforms=transforms, num_workers=workers)
    memory = Memory()
    make_trainer(max_epochs=3, limit_val_batches=0).fit(memory, datamodule=data)
    orders = [[index for index, _ in samples] for samples in memory.epochs.values()]
    assert [sorted(order) for order in orders] == [list(range(12))] * 3
    assert len({tuple(order) for order in orders}) == 3
    assert len({image for samples in memory.epochs.values() for _, image in samples}) == 36


@pytest.fixture
def folded(tiny_dataset):
    """The 12 training images in three folds of 6, 4 and 2 images, without val.h5."""
    folds, arrays = np.array([0, 1, 0, 1, 0, 2, 0, 1, 0, 2, 0, 1]), {}
    reader = SplitReader(tiny_dataset / "train.h5")
    for role in ("image", "target"):
        arrays[role] = np.stack([reader.read(role, i) for i in range(12)])
    summaries = []
    for fold in range(3):
        part = {role: array[folds != fold] for role, array in arrays.items()}
        ids = [id_ for id_, number in zip(reader.ids, folds, strict=True) if number != fold]
        summaries.append(write_split(tiny_dataset / "val.h5", part, ids, ids))
    options = {"folds": folds, "fold_statistics": summaries, **reader.attributes}
    del options["format_version"], options["content_hash"]
    write_split(tiny_dataset / "train.h5", arrays, reader.ids, reader.groups, **options)
    (tiny_dataset / "val.h5").unlink()
    return tiny_dataset


def images_of(loader):
    """Index -> image."""
    batches = list(loader)
    indices = torch.cat([batch["index"] for batch in batches]).tolist()
    return dict(zip(indices, torch.cat([batch["image"] for batch in batches]).numpy(), strict=True))


@pytest.mark.parametrize("fold", [0, 2])
def test_a_fold_is_val_and_the_others_are_train(folded, fold):
    whole = SplitReader(folded / "train.h5")
    chosen, others = np.flatnonzero(whole.folds == fold), np.flatnonzero(whole.folds != fold)
    data = module(folded, fold=fold, batch_size=len(others))
    data.setup("fit")
    for split, members, loader in (
        ("val", chosen, data.val_dataloader()),
        ("train", others, data.train_dataloader()),
        ("train", others, data.eval_dataloader("train")),
    ):
        assert data.reader(split).ids == [whole.ids[i] for i in members]
        pixels = np.stack([whole.read("image", i) for i in others])
        assert data.statistics["image"][0]["mean"] == pytest.approx(pixels.mean(), rel=1e-12)
        seen = images_of(loader)
        assert sorted(seen) == list(range(len(members)))
        for index, image in seen.items():
            np.testing.assert_array_equal(image, whole.read("image", members[index]))


def test_folds_that_the_data_does_not_offer(folded, make_dataset):
    with pytest.raises(UserError, match=r"into 3 folds; choose one with `make train FOLD=0` \(`--data.fold 0`\)"):
        module(folded)
    for fold in (-1, 3):
        with pytest.raises(UserError, match=rf"no fold {fold}: (.*)3 folds, 0 to 2"):
            module(folded, fold=fold)
    with pytest.raises(UserError, match=r"data\.fold is 0(.*)not divided into folds"):
        module(make_dataset(), fold=0)
