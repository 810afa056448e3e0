"""Writing split files: nothing incomplete, the content hash, mask counts, joining of shards."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from split_files import GROUPS, IDS, LABELS, RAGGED, UNIFORM, write

from project.data.datamodule import ImageDataModule
from project.data.split_metadata import SampleRecord, SplitMetadata
from project.data.split_writer import join, open_writer
from project.data.statistics import SplitStatistics
from project.data.store import SplitReader


def test_an_error_removes_the_new_file_and_keeps_the_old(tmp_path):
    old = write(tmp_path / "a.h5").read_bytes()
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / "a.h5", {}, {}):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="Out of range float"):
        write(tmp_path / "a.h5", statistics={"mean": float("nan")})
    writer = open_writer(tmp_path / "a.h5", {"image": (2, 1, 4, 5)}, {"image": np.dtype("u1")})
    with pytest.raises(ValueError, match="announced"), writer as opened:
        opened.write("a", {"image": np.ones((1, 1, 5), np.uint8)})
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    assert (tmp_path / "a.h5").read_bytes() == old


FILE_TOO_LARGE = """
import resource, sys
from pathlib import Path
import numpy as np
from split_files import write
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
try:
    write(Path(sys.argv[1]), {"image": list(np.ones((3, 1, 600, 800), np.uint16))})
except OSError as error:
    print(error.errno, error.filename)
"""


@pytest.mark.slow
def test_a_file_that_cannot_grow_is_an_error_of_the_system(tmp_path):
    """HDF5 itself crashes when it closes such a file."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests/data'}"}
    command = [sys.executable, "-c", FILE_TOO_LARGE, str(tmp_path / "a.h5")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.startswith(f"{errno.EFBIG} {tmp_path}"), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arrays", [UNIFORM, RAGGED], ids=["uniform", "ragged"])
def test_pixels_per_class(tmp_path, arrays):
    expected = np.array([[(mask == value).sum() for value in range(3)] for mask in arrays["mask"]])

    def counted(names: str, **options) -> np.ndarray:
        path = write(tmp_path / "a.h5", arrays, classes={"mask": list(names)}, **options)
        return SplitReader(path).mask_counts

    np.testing.assert_array_equal(counted("abcde"), np.pad(expected, ((0, 0), (0, 2))))
    np.testing.assert_array_equal(counted("abc", ignore_index=1), expected * [1, 0, 1])
    assert counted("") is None


def hash_of(path: Path, **changed) -> str:
    return SplitReader(write(path, **changed)).content_hash


def test_the_content_hash_covers_everything_that_scores_depend_on(tmp_path):
    path, hashes = tmp_path / "a.h5", [hash_of(tmp_path / "a.h5")]
    assert hash_of(tmp_path / "other.h5", compression="blosc2", notes=["n"]) == hashes[0]
    order = [2, 0, 1]
    arrays = {name: [images[i] for i in order] for name, images in list(UNIFORM.items())[::-1]}
    ids, groups = ([texts[i] for i in order] for texts in (IDS, GROUPS))
    assert hash_of(path, arrays=arrays, ids=ids, groups=groups, labels=LABELS[order]) == hashes[0]
    for name in UNIFORM:
        other = {key: [a.copy() for a in images] for key, images in UNIFORM.items()}
        other[name][1].flat[-1] += 1
        hashes.append(hash_of(path, arrays=other))
    several, values = np.array([[0, 1], [0, 0], [1, 1]]), np.array([[1.0], [2.0], [3.0]])
    changes = [
        {"ids": [*IDS[:2], "x"]},
        {"groups": ["day 1", "g", "g"]},
        {"labels": np.array([2, 1, 1])},
        {"labels": None},
        {"labels": several},
        {"labels": several[:, ::-1]},
        {"labels": LABELS[:, None]},
        {"values": values},
        {"values": values[::-1]},
        {"folds": LABELS},
        {"arrays": {name: images[::-1] for name, images in UNIFORM.items()}},
        {"ignore_index": 0},
        {"classes": {"mask": ["sky", "road"]}},
        {"classes": {"mask": ["road", "sky"]}},
        {"classes": {"mask": ["sky", "road"]}, "background": "sky"},
        {"classes": {"mask": ["sky", "road"]}, "positive": "road"},
    ]
    hashes += [hash_of(path, **change) for change in changes]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(
    ("arrays", "cut", "compression"),
    [(UNIFORM, [2, 1], "none"), (RAGGED, [1, 1, 1], "none"), (UNIFORM, [2, 1], "blosc2"), (RAGGED, [2, 1], "blosc2")],
)
def test_shards_are_joined_to_one_file_like_one_that_was_written_at_once(tmp_path, arrays, cut, compression):
    dtypes = {name: images[0].dtype for name, images in arrays.items()}
    shards, first, records = [], 0, []
    for number, count in enumerate(cut):
        chosen = range(first, first + count)
        # Room for one more, as for a sample that was skipped.
        shapes = {} if arrays is RAGGED else {name: (count + 1, *images[0].shape) for name, images in arrays.items()}
        path, ids = tmp_path / f"shard-{number}.h5", [IDS[i] for i in chosen]
        with open_writer(path, shapes, dtypes, compression) as writer:
            for i in chosen:
                sample = {name: images[i] for name, images in arrays.items()}
                writer.write(IDS[i], sample)
                records.append(SampleRecord.measure(IDS[i], sample, SplitStatistics()))
        shards.append((path, ids))
        first += count
    metadata = SplitMetadata.of(records, GROUPS, 0, None)
    metadata.labels = LABELS
    join(tmp_path / "train.h5", shards, metadata)
    for path, _ in shards:
        path.unlink()
    reader = SplitReader(tmp_path / "train.h5")
    whole = SplitReader(write(tmp_path / "a.h5", arrays, compression=compression))
    for name in ("ids", "groups", "shapes", "dtypes", "content_hash"):
        assert getattr(reader, name) == getattr(whole, name)
    for name, images in arrays.items():
        for index in (2, 0, 1):
            np.testing.assert_array_equal(reader.read(name, index), images[index])
    sizes = [path.stat().st_size for path in (tmp_path / "train.h5", tmp_path / "a.h5")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.2)


def test_examples_of_the_readme_run(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "data" / "README.md").read_text(encoding="utf-8")
    read, write_own = [block.partition("```")[0] for block in text.split("```python\n")[1:]][-2:]
    monkeypatch.chdir(tmp_path)
    exec(write_own, {})
    data = ImageDataModule("mine", batch_size=4, crop=32)
    data.setup("fit")
    data.setup("test")
    assert (data.classes, data.ignore_index, data.channels["target"]) == ({}, None, ["dna"])
    assert {name: len(dataset) for name, dataset in data.datasets.items()} == {"train": 16, "val": 4, "test": 4}
    assert sum(data.statistics[role][0]["mean"] for role in data.roles) == pytest.approx(4095)
    for batch in (next(iter(data.train_dataloader())), next(iter(data.test_dataloader()))):
        assert (batch["image"].int() + batch["target"].int() == 4095).all()
    Path("data/processed/mine").rename("data/processed/yeast")
    exec(read, {})
