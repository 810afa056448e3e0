"""Small prepared datasets, written as `make data` writes them."""

import dataclasses
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from shipped_configs import CONFIGS

from project.data.config import SplitConfig
from project.data.split_writer import write_split
from project.runs.run_folder import RUN_FOLDER_VARIABLE

ROOT = Path(__file__).parents[1]

# torch reads these when it is imported, here and in what tests start. Tests that run side by side share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))
os.environ["HF_HUB_CACHE"] = "no-cache"  # pretrained weights of this machine would add baselines, and change plans


def pytest_collection_finish() -> None:
    """Leave the objects of torch, Lightning and the tests themselves out of every later collection: 0.3 s each."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let them be freed."""
    gc.unfreeze()


N = {"train": 12, "val": 5, "test": 4}
PLANES = ("mask", "instances")


def _image(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Blobs from 0 to 1, each image with a brightness of its own, (C, H, W)."""
    blobs = gaussian_filter(rng.random(shape), (0, 2, 2))
    return 0.2 * rng.random() + 0.8 * (blobs - blobs.min()) / np.ptp(blobs)


def _target(image: np.ndarray) -> np.ndarray:
    """A smoothed function of the image."""
    return gaussian_filter(image**2, (0, 1, 1))


def write_dataset(
    folder: Path,
    *,
    shape: tuple[int, int] = (48, 40),
    n: dict[str, int] = N,
    dtype: Any = np.uint16,
    target_dtype: Any = None,
    low: float = 9000,
    high: float = 12000,
    target_offset: float = 500,
    channels: int = 1,
    target_channels: int = 1,
    roles: tuple[str, ...] = ("image", "target"),
    sizes: dict[str, list[tuple[int, int]]] | None = None,
    labels: bool = False,
    n_labels: int = 0,
    multi_label: bool = False,
    n_classes: int = 2,
    n_values: int = 0,
    seed: int = 0,
    split_seed: int = 0,
    compression: str = "none",
) -> Path:
    """Write train.h5, val.h5 and test.h5.

    Args:
        folder: Is made; its name is the name of the dataset.
        shape: Height and width of all images.
        n: Images per split.
        dtype, target_dtype: Of the arrays; the target's is the image's if not given.
        low, high: Input values lie between these; target values too, shifted by `target_offset`.
        target_offset: See `high`.
        channels, target_channels: Numbers of channels.
        roles: Arrays to write, of image, target, mask, instances.
        sizes: Split -> (height, width) of each image, where they differ.
        labels: Write class numbers, of two classes.
        n_labels: Write class numbers of so many classes.
        multi_label: Write zeros and ones for each of these classes.
        n_classes: Of the mask.
        n_values: Write so many numbers per image: multiples of its mean brightness.
        seed: Of the images.
        split_seed: Stored in the attributes: distinguishes preparations.
        compression: As for `write_split`.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    target_dtype = np.dtype(target_dtype or dtype)
    n_labels = n_labels or 2 * labels
    names, mask_names = (["dark", "bright", *(f"class {i}" for i in range(2, n))][:n] for n in (n_labels, n_classes))
    attributes: dict[str, Any] = {
        "channels": {
            "image": [f"in{c}" for c in range(channels)],
            "target": [f"out{c}" for c in range(target_channels)],
        }
        | ({"value": [f"value{k}" for k in range(n_values)]} if n_values else {}),
        "classes": ({"mask": mask_names} if "mask" in roles else {}) | ({"label": names} if n_labels else {}),
        "background": "dark",
        "positive": "bright" if n_labels == 2 else None,
        "ignore_index": 255,
        "split": dataclasses.asdict(SplitConfig(seed=split_seed)) | {"n": n},
        "source": {"command": "tests"},
    }
    for split, count in n.items():
        planes = (sizes or {}).get(split, [shape] * count)
        samples = []
        numbers = np.arange(count) % n_labels if n_labels else None
        if multi_label:
            numbers = rng.integers(0, 2, (count, n_labels))
        for height, width in planes:
            image = _image(rng, (max(channels, target_channels), height, width))
            sample = {
                "image": (low + (high - low) * image[:channels]).astype(dtype),
                "target": (low + target_offset + (high - low) * _target(image)[:target_channels]).astype(target_dtype),
                "mask": np.minimum(np.ceil(image[0] * n_classes) - 1, n_classes - 1).clip(0).astype(np.uint8),
                "instances": (image[0] * 20).astype(np.uint16),
            }
            samples.append({role: sample[role] for role in roles})
        means = np.array([sample["image"].mean() for sample in samples])
        values = means[:, None] * np.arange(1, n_values + 1) if n_values else None
        arrays, ids = (
            {role: [sample[role] for sample in samples] for role in roles},
            [f"{split}{i:02d}" for i in range(count)],
        )
        file = folder / f"{split}.h5"
        statistics = write_split(file, arrays, ids, ids, numbers, values, compression, **attributes)
        attributes.setdefault("statistics", statistics)
    return folder


@pytest.fixture
def make_dataset(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Writes a prepared dataset with the options of `write_dataset`; returns its folder."""
    made: list[Path] = []

    def make(**options: Any) -> Path:
        made.append(write_dataset(tmp_path / "processed" / f"set{len(made)}", **options))
        return made[-1]

    return make


@pytest.fixture
def tiny_dataset(request: pytest.FixtureRequest, make_dataset: Callable[..., Path]) -> Path:
    """12, 5 and 4 images of 48 x 40 uint16 between 9000 and 12000, with a target 500 above.

    Other data: `@pytest.mark.parametrize("tiny_dataset", [{"dtype": np.float32}], indirect=True)`, with the options of
    `write_dataset`.
    """
    return make_dataset(**getattr(request, "param", {}))


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Any]:
    """Makes a `Trainer` on the CPU that writes nothing; options of `Trainer` win."""

    def make(**options: Any) -> Any:
        import lightning.pytorch as pl

        silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        fixed = dict.fromkeys((*silent, "use_distributed_sampler"), False)
        return pl.Trainer(**{"accelerator": "cpu", "devices": 1, "default_root_dir": str(tmp_path), **fixed, **options})

    return make


@pytest.fixture(scope="session")
def write_tiny() -> Callable[..., Path]:
    """`write_dataset` itself, for fixtures that live longer than a test."""
    return write_dataset


@pytest.fixture
def empty_workplace(tmp_path, monkeypatch):
    """A working folder with the shipped configurations and nothing else."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, "")
    return tmp_path


@pytest.fixture(scope="module")
def module_workplace(tmp_path_factory):
    """The same for all tests of a module."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(CONFIGS, folder / "configs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setenv(RUN_FOLDER_VARIABLE, "")
        yield folder


@pytest.fixture(scope="module")
def workplace(request, module_workplace, write_tiny):
    """A working folder with the shipped configurations, and a tiny dataset under the name of the demo's.

    Other data: `DATASET` in the test module, with the options of `write_dataset`.
    """
    folder = module_workplace
    defaults = folder / "configs/default.yaml"  # one crop of each image, so that tests can count steps
    defaults.write_text(defaults.read_text().replace("\ndata:\n", "\ndata:\n  crops_per_image: 1\n"))
    write_tiny(folder / "data/processed/yeast", **getattr(request.module, "DATASET", {"shape": (40, 40)}))
    return folder
