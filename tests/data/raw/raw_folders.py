"""Folders of tiny images, and the samples that are found in them."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from project.data.config import DatasetConfig
from project.data.preparation.pixels import read_role
from project.data.raw.find_samples import find_samples
from project.data.raw.samples import Problems, Sample
from project.errors import UserError


def put(folder: Path, *names: str, shape: tuple[int, ...] = (4, 5), fill: int = 0) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / name, np.full(shape, fill, np.uint16), photometric="minisblack")


def config(folder: Path, image: dict[str, str] | str, **options) -> DatasetConfig:
    return DatasetConfig(str(folder), {"a": image} if isinstance(image, str) else image, **options)


def find(folder: Path, image: dict[str, str] | str, problems: Problems | None = None, **options) -> list[Sample]:
    return find_samples(config(folder, image, **options), problems or Problems())


def skipping(folder: Path, image: dict[str, str] | str, **options) -> tuple[list[Sample], list[tuple[str, str]]]:
    problems = Problems(skip=True)
    return find(folder, image, problems, **options), problems.skipped


def notes(folder: Path, image: dict[str, str] | str, **options) -> tuple[list[Sample], list[str]]:
    problems = Problems()
    return find(folder, image, problems, **options), problems.notes + problems.warnings


def problem(folder: Path, image: dict[str, str] | str, **options) -> str:
    with pytest.raises(UserError) as caught:
        find(folder, image, **options)
    return str(caught.value)


def read(sample: Sample, role: str) -> np.ndarray:
    return read_role(sample, role, lambda ref: ref.open())


def paths(sample: Sample, role: str) -> list[Path]:
    return [path for ref in sample.images[role] for path in ref.paths]
