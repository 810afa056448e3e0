"""Raw images to predict from, found and read as by the preparation of the dataset."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from project.data.config import DatasetConfig
from project.data.config_reader import build_config
from project.data.path_patterns import field_values
from project.data.preparation.pixels import PixelSettings, open_role, read_sample, role_notes
from project.data.raw.find_samples import find_samples
from project.data.raw.images import FileRef
from project.data.raw.lazy_image import errors_mention
from project.data.raw.microscopes import ZARR
from project.data.raw.patterns import Pattern, count_suffixes, describe_unmatched, files_below
from project.data.raw.readers import READERS
from project.data.raw.samples import Problems, Sample
from project.data.raw.sources import PatternSource, Source
from project.data.store import SplitReader
from project.errors import UserError, bullet_list
from project.files import safe_file_name
from project.inference.model import Model
from project.runs.untrusted import read_config
from project.yaml_files import read_yaml

CONFIGS = Path("configs/data")
# Keys of a dataset's configuration that say how an image is read; the others are about targets and splits.
IMAGE_KEYS = ("image", "convert", "pages", "axes", "sizes", "not_finite")
ONE_FILE = {"image": "{id}.tif"}


@dataclass(frozen=True)
class Inputs:
    """The images of a folder, in the order of their ids."""

    samples: list[Sample]
    problems: list[tuple[str, str]]  # (id or file, reason) of incomplete ones
    unread: list[str]  # notes on files that are not read
    model: Model
    config: DatasetConfig  # how they are read
    notes: dict[str, list[str]] = field(default_factory=dict)  # id -> notes on the files of an image that was read

    def read(self, sample: Sample) -> np.ndarray:
        """The raw pixels (C, H, W) as prepared data has them; UserError if they are not like the training images."""
        files = open_role(sample, "image", lambda ref: ref.open())
        for file in files:
            with errors_mention(sample.images["image"][0]):
                self.model.check_kind(sum(other.shape[0] for other in files), file.dtype)
        self.notes[sample.id] = role_notes("image", files)
        resized = self.config.sizes if self.config.sizes and self.config.sizes.how == "resize" else None
        settings = PixelSettings({"image": self.model.dtype.name}, sizes=resized, not_finite=self.config.not_finite)
        return read_sample(sample, settings)[0]["image"]


def find_inputs(folder: Path, model: Model) -> Inputs:
    """The images of a folder and its sub-folders, or a single file; UserError if there is none.

    Their names fit the patterns of the dataset; or, if no file does and an image is a single file, every image file is
    an image with its path as id. Pages, axes and conversions are those of the dataset in either case.
    """
    if not folder.exists():
        raise UserError(f'there is no folder "{folder}" with images')
    config = _dataset_config(model) or DatasetConfig(raw=str(folder), image=ONE_FILE)
    is_folder = folder.is_dir() and folder.suffix.lower() != ZARR
    raw, names = (folder, files_below(folder)) if is_folder else (folder.parent, [folder.name])
    values = field_values(list(config.image.values()))
    patterns = [Pattern.parse(text, values=values) for text in config.image.values()]
    config, problems = replace(config, raw=str(raw)), Problems(skip=True)
    source: Source = PatternSource(config)
    if not is_folder or not any(map(patterns[0].fits, names)):
        if len(patterns) > 1 and len({pattern.text for pattern in patterns}) == len(patterns):
            raise UserError(
                f'an image of {model.members[0].run.name} is in several files, and none below "{folder}" fit:\n'
                f"{bullet_list(pattern.text for pattern in patterns)}"
            )
        images = [name for name in names if Path(name).suffix.lower() in READERS]
        if not images:
            raise UserError(f'there is no image below "{folder}" ({count_suffixes(names)})')
        source = _Files(raw, images, config, patterns)
        if message := describe_unmatched(set(names) - set(images), [], raw):
            problems.notes.append(message)
    samples = find_samples(config, problems, source)
    return Inputs(samples, problems.skipped, problems.notes, model, config)


class _Files(Source):
    """Every image file as a sample."""

    def __init__(self, raw: Path, names: list[str], config: DatasetConfig, patterns: list[Pattern]) -> None:
        self.raw, self.names, self.config, self.patterns = raw, names, config, patterns

    def samples(self, problems: Problems) -> Iterator[Sample]:
        """Ids are paths without suffix; with it where two files differ in nothing else."""
        stems = {name: Path(name).with_suffix("").as_posix() for name in self.names}
        counts = Counter(stems.values())
        for name, stem in stems.items():
            refs = [
                FileRef(self.raw / name, self.config.axes, channel=pattern.channel, convert=self.config.convert)
                for pattern in self.patterns
            ]
            yield Sample(stem if counts[stem] == 1 else name, {"image": refs})


def _dataset_config(model: Model) -> DatasetConfig | None:
    """How the images of the run's dataset were read: from its prepared data, else from its configuration here."""
    section = read_config(model.members[0].run.config).get("data")
    section = section if isinstance(section, dict) else {}
    name = section.get("dataset")
    if not isinstance(name, str) or name != safe_file_name(name):
        return None
    prepared, file = Path(str(section.get("root"))) / name / "train.h5", CONFIGS / f"{name}.yaml"
    content: Any = None
    with suppress(UserError):  # missing, or of another version
        attributes = SplitReader(prepared).attributes
        if attributes["channels"].get("image") == model.task.channels.get("image"):
            content = (attributes.get("source") or {}).get("config")
    if content is None and file.is_file():
        content = read_yaml(file)
    if not isinstance(content, dict):
        return None
    keys = {key: content[key] for key in IMAGE_KEYS if content.get(key) is not None}
    patterns = keys.get("image") or ONE_FILE  # arrays, or a class of the user: here each image is a file
    # `{split}` has a meaning for training only.
    keys["image"] = {key: re.sub(r"\{split(?=[:}])", "{split_", str(text)) for key, text in dict(patterns).items()}
    try:
        return build_config({"raw": ".", **keys})
    except UserError as error:
        raise UserError(f'the data configuration of "{name}" does not fit: {error}') from error
