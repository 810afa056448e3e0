"""The prepared splits of one dataset, as Lightning wants them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import albumentations as A
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from project.data.augment import GeometricAugmentation
from project.data.batch import Tensors
from project.data.config import PROCESSED
from project.data.dataset import SplitDataset
from project.data.few_labels import labelled_part, other_part
from project.data.loader import ThreadLoader, whole_batch
from project.data.samplers import EvaluationBatches, ShuffledSampler
from project.data.store import SplitReader
from project.errors import UserError


def check_fold(train: SplitReader, fold: int | None) -> None:
    """Refuse a choice of fold that the data does not offer.

    Args:
        train: The reader of the whole train.h5.
        fold: The fold that is chosen, or None.

    Raises:
        UserError: There are folds and none is chosen, or there is no such fold.
    """
    if train.folds is None:
        if fold is not None:
            raise UserError(
                f'data.fold is {fold}, but "{train.path.parent}" is not divided into folds; leave it out, or set '
                "`split: {folds: 5}` in the data config and prepare the data again"
            )
        return
    n = int(train.folds.max()) + 1
    if fold is None:
        raise UserError(f"the data is divided into {n} folds; choose one with `make train FOLD=0` (`--data.fold 0`)")
    if not 0 <= fold < n:
        raise UserError(f"there is no fold {fold}: the data is divided into {n} folds, 0 to {n - 1}")


class ImageDataModule(LightningDataModule):
    """Batches of raw images from `<root>/<dataset>/{train,val,test}.h5`.

    Where train.h5 is divided into folds, one of them is the validation split and the others the training split; there
    is no val.h5 then. test.h5 is the same for all folds.

    Training takes random crops with geometric augmentation; validation and test see whole images, once each. Batches
    keep the dtype of the camera: the task normalises on the device.

    Args:
        dataset: Name of a prepared dataset.
        root: Folder of the prepared datasets.
        batch_size: Samples per training step and device.
        eval_batch_size: Images per validation step; whole images need more memory than crops.
        crop: Side of the random training crops in pixels, a multiple of what the network halves; None trains on whole
            images.
        crops_per_image: Crops of each image in an epoch; more for few large images.
        foreground_crops: Share of the training crops that are centred on a pixel that is not background, each class as
            often as any other; for objects that are rare in large images.
        balanced: Let every class of the labels come equally often in training.
        transforms: Geometric transforms of albumentations, or compositions of them such as `OneOf`, applied to input
            and target alike.
        num_workers: Processes that read and augment; 0 does it in a thread of the training process, during the steps.
            The batches are the same. Processes pay where augmentation takes longer than a training step.
        fold: Number of the fold to validate on, from 0; needed where the data has folds.
        labelled_fraction: Share of the training labels that may be used, see `project.data.few_labels.labelled_part`.
            An epoch stays as long: each image gives more crops. Tasks without labels take all images.
        seed: Of shuffling, crops and augmentation, and of the choice of the labels.
        roles: Arrays in a batch, such as `[image, target]`; null: the inputs of the task that the trainer fits,
            without a trainer all that train.h5 has. See `project.data.batch.Batch`.

    Raises:
        UserError: There is no prepared data, or not this fold.
    """

    def __init__(
        self,
        dataset: str = "yeast",
        root: str = str(PROCESSED),
        batch_size: int = 16,
        eval_batch_size: int = 8,
        crop: int | None = None,
        crops_per_image: int = 1,
        foreground_crops: float = 0.0,
        balanced: bool = False,
        transforms: list[A.BasicTransform | A.BaseCompose] | None = None,
        num_workers: int = 0,
        fold: int | None = None,
        labelled_fraction: float = 1.0,
        seed: int = 0,
        roles: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.folder = Path(root) / dataset
        self.dataset, self.batch_size, self.eval_batch_size = dataset, batch_size, eval_batch_size
        self.crop, self.crops_per_image, self.num_workers, self.seed = crop, crops_per_image, num_workers, seed
        self.foreground_crops, self.balanced = foreground_crops, balanced
        self.augmentation = GeometricAugmentation(transforms) if transforms else None
        self._roles = None if roles is None else tuple(roles)
        self._optional_roles: tuple[str, ...] | None = None
        self.fold = fold
        self.whole = SplitReader(self.folder / "train.h5")
        check_fold(self.whole, fold)
        self.readers: dict[str, SplitReader] = {"train": self.whole}
        if fold is not None:
            self.readers = {name: self.whole.fold_subset(fold, training=name == "train") for name in ("train", "val")}
        self.all_images = self.readers["train"]
        self.readers["train"] = labelled_part(self.all_images, labelled_fraction, seed)
        self.datasets: dict[str, SplitDataset] = {}
        self.position: dict[str, int] = {}

    @property
    def roles(self) -> tuple[str, ...]:
        """Arrays that batches need to have."""
        if self._roles is not None:
            return self._roles
        if task := self._task():
            return tuple(task.inputs)
        reader = self.whole
        return (*reader.dtypes, *(role for role in ("label", "value") if getattr(reader, f"{role}s") is not None))

    @roles.setter
    def roles(self, roles: Sequence[str]) -> None:
        self._roles = tuple(roles)

    @property
    def optional_roles(self) -> tuple[str, ...]:
        """Arrays that batches of validation and test have in addition where the files do."""
        if self._optional_roles is not None:
            return self._optional_roles
        return tuple(getattr(self._task(), "optional_roles", ()))

    @optional_roles.setter
    def optional_roles(self, roles: Sequence[str]) -> None:
        self._optional_roles = tuple(roles)

    def _task(self) -> Any:
        """The task that the trainer fits, or None."""
        task = getattr(self.trainer, "lightning_module", None)
        return task if hasattr(task, "roles") else None

    @property
    def statistics(self) -> dict[str, Any]:
        """Statistics of the training split (all folds but the chosen one): role -> one dictionary per channel."""
        return dict(self.readers["train"].attributes["statistics"])

    @property
    def channels(self) -> dict[str, list[str]]:
        """Role -> channel names; "value" -> names of the numbers per image."""
        return dict(self.readers["train"].attributes["channels"])

    @property
    def classes(self) -> dict[str, list[str]]:
        """Role ("mask" or "label") -> class names."""
        return dict(self.readers["train"].attributes["classes"])

    @property
    def background(self) -> str | None:
        """The class of the mask that is left out of mean scores, or None where all count."""
        return None if "mask" not in self.classes else self.readers["train"].attributes["background"]

    @property
    def positive(self) -> str | None:
        """The positive one of two labels."""
        return None if "label" not in self.classes else self.readers["train"].attributes["positive"]

    @property
    def has_instances(self) -> bool:
        """Whether single objects are annotated."""
        return "instances" in self.readers["train"].dtypes

    @property
    def ignore_index(self) -> int | None:
        """Value of the mask that stands for "not annotated"."""
        value = self.readers["train"].attributes["ignore_index"]
        return None if value is None else int(value)

    @property
    def multi_label(self) -> bool:
        """Whether an image can have any number of labels."""
        labels = self.readers["train"].labels
        return labels is not None and labels.ndim == 2

    def reader(self, split: str) -> SplitReader:
        """The reader of a split, opened when first asked for: training never touches the test file."""
        if split == "train" and self.roles == ("image",):
            return self.without_labels()
        if split not in self.readers:
            self.readers[split] = SplitReader(self.folder / f"{split}.h5")
            # Splits are of one preparation, or samples may stand in two of them. Where labels were added to the
            # training images, `origin` holds what these said before.
            own, others = self.readers[split].attributes, self.whole.attributes
            others = others.get("origin", others)
            if any(own[name] != others[name] for name in ("split", "statistics")):
                raise UserError(f'"{self.folder}": {split}.h5 and train.h5 come from different preparations')
        return self.readers[split]

    def without_labels(self) -> SplitReader:
        """The images for tasks that need no labels: unlabeled.h5 where there is one, else all of the training split.

        Raises:
            UserError: The unlabelled images have other channels or another dtype.
        """
        if not (path := self.folder / "unlabeled.h5").is_file():
            return self.all_images
        if "unlabeled" not in self.readers:
            found = self.readers["unlabeled"] = SplitReader(path)
            kinds = [
                (reader.attributes["channels"].get("image"), reader.dtypes["image"], reader.shapes["image"][0][0])
                for reader in (found, self.whole)
            ]
            if kinds[0] != kinds[1]:
                raise UserError(f'"{path}" has other channels or another dtype than train.h5; prepare both in one way')
        return self.readers["unlabeled"]

    def still_unlabelled(self) -> SplitReader:
        """The images to which a model could give labels: unlabeled.h5, else what `labelled_fraction` leaves out.

        Raises:
            UserError: There are none.
        """
        if (self.folder / "unlabeled.h5").is_file():
            return self.without_labels()
        if len(self.readers["train"]) == len(self.all_images):
            raise UserError(
                f'"{self.folder}" has no unlabeled.h5, and all its training images are used with their labels: there '
                "is nothing to give labels to"
            )
        return other_part(self.all_images, self.readers["train"])

    def setup(self, stage: str) -> None:
        """Open the splits of a stage: "fit", "validate" or "test"."""
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}[stage]:
            self.datasets[split] = self._make(split, training=split == "train")

    def check_training(self, n_devices: int = 1) -> None:
        """Refuse what would only fail once training starts.

        Raises:
            UserError: An epoch has less than one batch for each device, whole images that differ in size, or no single
            labels to balance.
        """
        n_samples = len(self.datasets["train"]) // n_devices
        if n_samples < self.batch_size:
            raise UserError(
                f"data.batch_size is {self.batch_size}, but an epoch has {n_samples} samples per device; lower it, or "
                "raise `data.crops_per_image`"
            )
        labels = self.reader("train").labels
        if self.balanced and (labels is None or labels.ndim > 1):
            raise UserError("data.balanced needs one label per image, which the dataset does not have")
        if self.crop is None and len(set(self.reader("train").shapes["image"])) > 1:
            raise UserError("the training images differ in size; set `data.crop`")

    def _make(self, split: str, training: bool) -> SplitDataset:
        reader = self.reader(split)
        if not training:
            optional = [role for role in self.optional_roles if role in reader.dtypes and role not in self.roles]
            return SplitDataset(reader, [*self.roles, *optional])
        crops = self.crops_per_image
        if self.roles != ("image",):  # fewer labels shall not mean fewer steps
            crops = max(crops, round(crops * len(self.all_images) / len(reader)))
        return SplitDataset(reader, self.roles, self.crop, crops, self.augmentation, self.seed, self.foreground_crops)

    def train_dataloader(self) -> DataLoader[Tensors]:
        """Shuffled, augmented, in batches of equal size."""
        dataset = self.datasets["train"]
        rank, world_size = self._place()
        self.check_training(world_size)
        labels = self.reader("train").labels if self.balanced else None
        if labels is not None:
            labels = labels.repeat(dataset.crops_per_image)
        sampler = ShuffledSampler(len(dataset), self.seed, rank, world_size, labels)
        self._go_to_position(sampler, world_size)
        return self._loader(dataset, sampler=sampler, batch_size=self.batch_size, drop_last=True)

    def state_dict(self) -> dict[str, int]:
        """Where a training stands, for its checkpoint: the epoch, and how many of its batches are done."""
        if self.trainer is None:
            return {}
        loop, epoch = self.trainer.fit_loop, self.trainer.current_epoch
        progress: Any = loop.epoch_progress.current
        done = loop.batch_idx + 1
        if done >= self.trainer.num_training_batches or progress.processed > progress.completed:
            epoch, done = epoch + 1, 0
        return {"epoch": epoch, "batches": done, "batch_size": self.batch_size, "devices": self.trainer.world_size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Called when a training is resumed, before its loader is made."""
        self.position = state_dict

    def _go_to_position(self, sampler: ShuffledSampler, world_size: int) -> None:
        if not self.position:
            return
        epoch, done, size, devices = (self.position[name] for name in ("epoch", "batches", "batch_size", "devices"))
        if done and (size, devices) != (self.batch_size, world_size):
            raise UserError(
                f"the training was stopped in the middle of an epoch, with batches of {size} on {devices} device(s): "
                "go on with as many"
            )
        sampler.start_at(epoch, done * self.batch_size)

    def val_dataloader(self) -> DataLoader[Tensors]:
        """Whole images of the validation split."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Tensors]:
        """Whole images of the test split."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, split: str) -> DataLoader[Tensors]:
        """Whole images of any split, each once, without augmentation."""
        dataset = None if split == "train" else self.datasets.get(split)
        dataset = dataset or self._make(split, training=False)
        rank, world_size = self._place()
        if len(dataset) < world_size:
            raise UserError(
                f"{split} has {len(dataset)} images for {world_size} devices; each needs one: lower `trainer.devices`"
            )
        batches = EvaluationBatches(dataset.reader.shapes["image"], self.eval_batch_size, rank, world_size)
        return self._loader(dataset, batch_sampler=batches)

    def _loader(self, dataset: SplitDataset, **options: Any) -> DataLoader[Tensors]:
        pin_memory = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        if not self.num_workers:
            return ThreadLoader(dataset, pin_memory, **options)
        return DataLoader(
            dataset,
            collate_fn=whole_batch,
            num_workers=self.num_workers,
            persistent_workers=True,
            pin_memory=pin_memory,
            **options,
        )

    def _place(self) -> tuple[int, int]:
        """Rank and number of devices."""
        if self.trainer is None:
            return 0, 1
        if self.trainer.world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise UserError(
                "trainer.use_distributed_sampler must be false: the project's samplers share out the samples "
                "themselves, and Lightning's would leave some out of validation"
            )
        return self.trainer.global_rank, self.trainer.world_size
