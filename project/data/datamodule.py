"""Lightning datamodule of one prepared dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import albumentations as A
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from project.data.augment import GeometricAugmentation
from project.data.batch import Tensors
from project.data.config import PROCESSED
from project.data.dataset import SplitDataset, ThreadLoader, whole_batch
from project.data.dataset_facts import DatasetFacts, check_fold
from project.data.few_labels import labeled_subset
from project.data.samplers import EvaluationBatches, ShuffledSampler
from project.data.store import SplitReader
from project.errors import UserError


class ImageDataModule(DatasetFacts, LightningDataModule):
    """Batches of raw images from `<root>/<dataset>/{train,val,test}.h5`.

    Where train.h5 is divided into folds, one of them is the validation split and the others the training split.
    Training takes random crops with geometric augmentation; validation and test see whole images, once each.

    Args:
        dataset: Name of a prepared dataset.
        root: Folder of the prepared datasets.
        batch_size: Samples per training step and device.
        eval_batch_size: Images per validation step; whole images need more memory than crops.
        crop: Side of the random training crops in pixels, a multiple of what the network halves; None trains on whole
            images.
        crops_per_image: Crops of each image in an epoch. A training takes as many as cover the images, and enough for
            some steps, unless it is typed: see `project.data.crops.automatic_crops`.
        foreground_crops: Share of the training crops that are centered on a foreground pixel of the mask, all classes
            equally often; for objects that are rare in large images.
        balanced: Sample every class of the labels equally often in training.
        transforms: Geometric transforms of albumentations, or compositions of them such as `OneOf`, applied to input
            and target alike.
        num_workers: Processes that read and augment; 0: a thread of the training process, with the same batches.
            Processes pay where augmentation takes longer than a training step.
        fold: Number of the fold to validate on, from 0; needed where the data has folds.
        labelled_fraction: Share of the training labels that is used, see `project.data.few_labels.labeled_subset`. An
            epoch keeps its length: each image gives more crops. Tasks without labels use all images.
        seed: Of shuffling, crops, augmentation, and the choice of the labels.
        roles: Arrays in a batch, such as `[image, target]`; null: the inputs of the task that the trainer fits,
            without a trainer all that train.h5 has. See `project.data.batch.Batch`.

    Raises:
        UserError: There is no prepared data, or not this fold.

    Attributes:
        whole: All of train.h5.
        all_images: The training images, without those of the validation fold.
        readers: Split -> its reader, opened when it is needed; "train" has the labeled images only.
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
        LightningDataModule.__init__(self)
        numbers = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "crops_per_image": crops_per_image}
        if wrong := [f"data.{name} is {number}: write 1 or more" for name, number in numbers.items() if number < 1]:
            raise UserError("\n".join(wrong))
        if num_workers < 0:
            raise UserError(f"data.num_workers is {num_workers}: write 0 or more")
        self.folder, self.fold = Path(root) / dataset, fold
        self.whole = self.all_images = SplitReader(self.folder / "train.h5")
        check_fold(self.whole, fold)
        if fold is not None:
            self.all_images = self.whole.fold_subset(fold, training=True)
        DatasetFacts.__init__(self, labeled_subset(self.all_images, labelled_fraction, seed))
        if fold is not None:
            self.readers["val"] = self.whole.fold_subset(fold, training=False)
        self.dataset, self.batch_size, self.eval_batch_size = dataset, batch_size, eval_batch_size
        self.crop, self.crops_per_image, self.num_workers, self.seed = crop, crops_per_image, num_workers, seed
        self.foreground_crops, self.balanced = foreground_crops, balanced
        self.augmentation = GeometricAugmentation(transforms) if transforms else None
        self._roles = None if roles is None else tuple(roles)
        # Arrays of validation and test in addition, where the files have them; None: those of the task.
        self.optional_roles: Sequence[str] | None = None
        self.datasets: dict[str, SplitDataset] = {}

    @property
    def roles(self) -> tuple[str, ...]:
        """Arrays that batches need to have."""
        if self._roles is not None:
            return self._roles
        return self._of_task("inputs") or DatasetFacts(self.whole).available_roles

    @roles.setter
    def roles(self, roles: Sequence[str]) -> None:
        self._roles = tuple(roles)

    def _of_task(self, name: str) -> tuple[str, ...]:
        """An attribute of the task that the trainer fits; empty without one."""
        return tuple(getattr(getattr(self.trainer, "lightning_module", None), name, ()))

    @property
    def needs_labels(self) -> bool:
        """Whether the task reads more than images."""
        return self.roles != ("image",)

    def reader(self, split: str) -> SplitReader:
        """The reader of a split, opened when first asked for: training never touches the test file."""
        if split == "train" and not self.needs_labels:
            if not (self.folder / "unlabeled.h5").is_file():
                return self.all_images
            split = "unlabeled"
        if split not in self.readers:
            reader = self.readers[split] = SplitReader(self.folder / f"{split}.h5")
            shared = () if split == "unlabeled" else ("split", "statistics")
            if any(reader.attributes[name] != self.whole.attributes[name] for name in shared):  # they may share samples
                raise UserError(f'"{self.folder}": {split}.h5 and train.h5 come from different preparations')
        return self.readers[split]

    def setup(self, stage: str) -> None:
        """Open the splits of a stage: "fit", "validate" or "test"."""
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}[stage]:
            self.datasets[split] = self._make(split, training=split == "train")

    def check_training(self, n_devices: int = 1) -> None:
        """Refuse settings that would only fail once training starts."""
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

    def n_training_batches(self, trainer: Trainer) -> int:
        """Batches of an epoch on each device, under `trainer.limit_train_batches`; `UserError` if that leaves none."""
        n, limit = len(self.datasets["train"]) // trainer.world_size // self.batch_size, trainer.limit_train_batches
        limited = min(n, limit) if isinstance(limit, int) else int(n * limit)
        if n and not limited:
            raise UserError(f"trainer.limit_train_batches {limit} of {n} batches is none; write a larger number")
        return limited

    def _make(self, split: str, training: bool) -> SplitDataset:
        reader = self.reader(split)
        if not training:
            wanted = self._of_task("optional_inputs") if self.optional_roles is None else self.optional_roles
            optional = [role for role in wanted if role in reader.dtypes and role not in self.roles]
            return SplitDataset(reader, [*self.roles, *optional])
        crops = self.crops_per_image
        if self.needs_labels:  # fewer labels must not mean fewer steps
            crops = max(crops, round(crops * len(self.all_images) / len(reader)))
        return SplitDataset(reader, self.roles, self.crop, crops, self.augmentation, self.seed, self.foreground_crops)

    def train_dataloader(self) -> DataLoader[Tensors]:
        """Shuffled, augmented, in batches of equal size."""
        dataset = self.datasets["train"]
        rank, world_size = self._rank_and_world_size()
        self.check_training(world_size)
        labels = dataset.reader.labels if self.balanced else None
        labels = None if labels is None else labels.repeat(dataset.crops_per_image)
        sampler = ShuffledSampler(len(dataset), self.seed, rank, world_size, labels)
        return self._loader(dataset, sampler=sampler, batch_size=self.batch_size, drop_last=True)

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
        rank, world_size = self._rank_and_world_size()
        if len(dataset) < world_size:
            raise UserError(
                f"{split} has {len(dataset)} images for {world_size} devices; each needs one: lower `trainer.devices`"
            )
        batches = EvaluationBatches(dataset.reader.shapes["image"], self.eval_batch_size, rank, world_size)
        return self._loader(dataset, batch_sampler=batches)

    def _loader(self, dataset: SplitDataset, **options: Any) -> DataLoader[Tensors]:
        options["pin_memory"] = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        if not self.num_workers:
            return ThreadLoader(dataset, **options)
        options |= {"num_workers": self.num_workers, "persistent_workers": True, "collate_fn": whole_batch}
        return DataLoader(dataset, **options)

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        if self.trainer.world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise UserError(
                "trainer.use_distributed_sampler must be false: the project's samplers distribute the samples "
                "themselves, and Lightning's would falsify validation"
            )
        return self.trainer.global_rank, self.trainer.world_size
