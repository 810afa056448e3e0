"""Damaged and hostile data files: a clear message, no crash, nothing else read, no memory for what is not there."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from project.data import store
from project.data.datamodule import ImageDataModule
from project.data.store import SplitMetadata, SplitReader
from project.errors import UserError

ROOT = Path(__file__).parents[2]
# Reads everything in each file that it is told of; HDF5 is C, so that a crash would end the process.
READ = """
import random, resource, signal, sys
from pathlib import Path
from project.data.store import SplitReader
from project.errors import UserError

def changed(original, seed):
    rng, data = random.Random(seed), bytearray(original)
    kind = seed % 4
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    # What is not pixels stands at the beginning and at the end.
    places = [rng.choice((rng.randrange(4096), len(data) - 1 - rng.randrange(8192), rng.randrange(len(data))))
              for _ in range(rng.choice((1, 1, 4, 32)))]
    for place in places:
        place %= len(data)
        if kind == 1:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[place] = rng.choice((0, 0xFF, rng.randrange(256)))
        else:
            width = rng.choice((2, 8, 64))
            data[place : place + width] = bytes([rng.choice((0, 0xFF, 0x7F))]) * len(data[place : place + width])
    return bytes(data)

file, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
original = file.read_bytes()
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
for seed in range(first, last):
    print(seed, end=" ", flush=True)
    signal.alarm(20)  # a file that hangs ends the process too
    mutant = file.with_name("mutant.h5")
    mutant.unlink(missing_ok=True)
    mutant.write_bytes(changed(original, seed))
    reader = None
    try:
        reader = SplitReader(mutant)
        for name in reader.shapes:
            for index in range(len(reader)):
                reader.read(name, index)
        print("read", flush=True)
    except UserError as error:
        print("told" if len(str(error)) < 600 else str(error), flush=True)
    except BaseException as error:
        print(type(error).__name__, error, flush=True)
    if reader:
        reader.close()
print("memory", int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024)
"""


@pytest.fixture
def files(make_dataset, tmp_path):
    """A file of each layout; small, so that most of each is not pixels."""
    sizes = {"train": [(9, 11), (12, 8)] * 3, "val": [(9, 9)] * 5, "test": [(9, 9)] * 4}
    roles = ("image", "target", "mask", "instances")
    found = {
        "contiguous": make_dataset(shape=(9, 11), n={"train": 6, "val": 5, "test": 4}, roles=roles, labels=True),
        "ragged": make_dataset(sizes=sizes, n={"train": 6, "val": 5, "test": 4}, roles=roles),
        "blosc2": make_dataset(shape=(40, 40), n={"train": 6, "val": 5, "test": 4}, compression="blosc2"),
    }
    return {name: folder / "train.h5" for name, folder in found.items()} | {"shards": in_shards(tmp_path / "s")}


def in_shards(folder):
    """A file that takes its pixels from two others."""
    folder.mkdir()
    ids, shards = [f"a{i}" for i in range(6)], []
    for number in range(2):
        path = folder / f"part{number}.h5"
        own = ids[3 * number : 3 * number + 3]
        with store.ArrayWriter(path, {"image": [(1, 8, 8)] * 3}, {"image": np.dtype("u2")}, own) as writer:
            for index in range(3):
                writer.write(index, "image", np.full((1, 8, 8), index + 1, np.uint16))
            writer.complete()
        shards.append((path, own))
    store.join(folder / "train.h5", shards, SplitMetadata(ids, ids))
    return folder / "train.h5"


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "ragged", "blosc2", "shards"])
def test_a_thousand_damaged_files_are_read_or_told(files, layout, tmp_path):
    """250 of each layout: cut off, with bits and bytes changed, with runs of bytes overwritten."""
    folder = tmp_path / "mutants"
    shutil.copytree(files[layout].parent, folder)
    (tmp_path / "read.py").write_text(READ)
    first, last, outcomes, memory = 0, 250, [], []
    while first < last:
        command = [sys.executable, tmp_path / "read.py", folder / "train.h5", str(first), str(last)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
        outcomes += [(int(seed), what) for seed, what in lines if seed != "memory"]
        memory += [int(what) for seed, what in lines if seed == "memory"]
        first = outcomes[-1][0] + 1
        if done.returncode:
            outcomes[-1] = outcomes[-1][0], f"ended with {done.returncode}: {done.stderr[-300:]}"
    wrong = [outcome for outcome in outcomes if outcome[1] not in ("read", "told")]
    assert wrong == []
    assert len(outcomes) == last
    assert sum(what == "told" for _, what in outcomes) > 80, "the changes are felt"
    assert max(memory) < 300, "MB; reading them whole takes less than 100"


def rewritten(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replaced(file, name, **options):
    del file[name]
    file.create_dataset(name, **options)


def other_format(file):
    file.attrs["format_version"] = store.FORMAT + 1


WRONG = {
    "another version": (other_format, f"format version {store.FORMAT + 1}, this code reads {store.FORMAT}"),
    "no version": (lambda f: f.attrs.pop("format_version"), "damaged or not a split file"),
    "no image": (lambda f: f.pop("image"), "has no image array"),
    "no ids": (lambda f: f.pop("id"), "damaged or not a split file"),
    "no groups": (lambda f: f.pop("group"), "damaged or not a split file"),
    "too few groups": (lambda f: replaced(f, "group", data=["a"]), "1 groups for 12 ids"),
    "too few labels": (lambda f: replaced(f, "label", data=[1]), "1 rows of label for 12 ids"),
    "labels that are text": (lambda f: replaced(f, "label", data=["a"] * 12), "label holds no numbers"),
    "an image more": (lambda f: replaced(f, "image", data=np.zeros((13, 1, 48, 40), "u2")), "13 image arrays for 12"),
    "no channel axis": (lambda f: replaced(f, "image", data=np.zeros((12, 48, 40), "u2")), r"has the shape \(48, 40\)"),
    "no pixels": (lambda f: replaced(f, "image", shape=(12, 1, 0, 40), dtype="u2"), "has the shape"),
    "text for pixels": (
        lambda f: replaced(f, "image", shape=(12, 1, 48, 40), dtype=h5py.string_dtype()),
        "holds no numbers",
    ),
    "JSON without an end": (lambda f: f.attrs.__setitem__("split", '{"n": '), "damaged or not a split file"),
    "JSON without a bottom": (lambda f: f.attrs.__setitem__("split", "[" * 50_000), "damaged or not a split file"),
    # 2 TB that were never written: HDF5 gives zeros for them.
    "more pixels than bytes": (
        lambda f: replaced(f, "image", shape=(12, 1, 2**19, 2**18), dtype="u2", chunks=(1, 1, 128, 128)),
        "is larger than the file",
    ),
    "more ids than bytes": (lambda f: replaced(f, "id", shape=(2**40,), dtype=h5py.string_dtype()), "larger than the"),
    "more labels than bytes": (lambda f: replaced(f, "label", shape=(2**40,), dtype="i8"), "larger than the file"),
    "large chunks": (
        lambda f: replaced(f, "image", shape=(12, 1, 2**15, 2**15), dtype="u2", chunks=(1, 1, 2**15, 2**15)),
        "is larger than the file",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_file_is_told(make_dataset, change, message):
    path = rewritten(make_dataset(labels=True) / "train.h5", change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message) as caught:
        SplitReader(path)
    assert str(path) in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize("name", ["statistics", "channels", "classes", "ignore_index", "background", "positive"])
def test_an_attribute_that_is_missing_is_told_where_it_is_needed(make_dataset, name):
    folder = make_dataset(roles=("image", "mask"), labels=True)
    rewritten(folder / "train.h5", lambda file: file.attrs.pop(name))
    data = ImageDataModule(folder.name, str(folder.parent))
    with pytest.raises(UserError, match=f"does not say its {name}; prepare it again"):
        getattr(data, name)


# Other files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path):
    """A file of somebody else's, also as HDF5, and a pipe that never says anything."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["image"] = np.full((12, 1, 48, 40), 7, np.uint16)
    (tmp_path / "secret.txt").write_bytes(b"secret" * 20_000)
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def linked(file, to):
    del file["image"]
    file["image"] = h5py.ExternalLink(str(to), "/image")


def virtual(file, to):
    del file["image"]
    layout = h5py.VirtualLayout((12, 1, 48, 40), "u2")
    layout[:] = h5py.VirtualSource(str(to), "image", (12, 1, 48, 40))
    file.create_virtual_dataset("image", layout)


def external(file, to):
    del file["image"]
    file.create_dataset("image", (12, 1, 48, 40), "u2", external=[(str(to), 0, 12 * 48 * 40 * 2)])


@pytest.mark.parametrize(
    ("change", "to"),
    [(linked, "secret.h5"), (linked, "pipe"), (virtual, "secret.h5"), (virtual, "pipe"), (external, "secret.txt")],
)
def test_pixels_of_other_files_are_not_read(tiny_dataset, secret, change, to):
    path = rewritten(tiny_dataset / "train.h5", lambda file: change(file, secret / to))
    with pytest.raises(UserError, match=r"lies in another file|takes its values from another file"):
        SplitReader(path).read("image", 0)


@pytest.mark.parametrize("inside", [True, False])
def test_samples_of_other_files_are_not_read(make_dataset, secret, inside):
    sizes = {"train": [(9, 11), (12, 8)], "val": [(9, 9)], "test": [(9, 9)]}
    path = make_dataset(sizes=sizes, n={"train": 2, "val": 1, "test": 1}) / "train.h5"

    def change(file):
        del file["image/train01"]
        to = h5py.ExternalLink(str(secret / "pipe"), "/image") if inside else h5py.SoftLink("/id")
        file["image/train01"] = to

    rewritten(path, change)
    with pytest.raises(UserError, match="train01 lies in another file"):
        SplitReader(path).read("image", 1)


@pytest.mark.parametrize("name", ["../secret.h5", "/secret.h5", "parts/../../secret.h5", ""])
def test_parts_lie_beside_their_file(tmp_path, secret, name):
    path = in_shards(tmp_path / "s")
    shards = [[name.replace("/secret", f"{tmp_path}/secret") if name.startswith("/") else name, 3], ["part1.h5", 3]]
    rewritten(path, lambda file: file.attrs.__setitem__("shards", json.dumps(shards)))
    with pytest.raises(UserError, match="shards lie elsewhere"):
        SplitReader(path)


def test_a_part_that_differs_from_its_head_is_told(tmp_path):
    path = in_shards(tmp_path / "s")
    rewritten(tmp_path / "s/part1.h5", lambda file: replaced(file, "image", data=np.zeros((3, 1, 8, 8), "f4")))
    reader = SplitReader(path)
    assert reader.read("image", 0).max() == 1
    with pytest.raises(UserError, match=r"part1.h5.*was announced"):
        reader.read("image", 3)


def test_the_part_that_is_damaged_is_named(tmp_path):
    path = in_shards(tmp_path / "s")
    (tmp_path / "s/part1.h5").write_bytes(b"no HDF5")
    reader = SplitReader(path)
    with pytest.raises(UserError, match=r"part1.h5.*damaged"):
        reader.read("image", 5)


def test_a_chunk_that_cannot_be_decompressed_is_told(make_dataset):
    path = make_dataset(compression="blosc2", shape=(64, 64)) / "train.h5"
    with h5py.File(path) as file:
        place = file["image"].id.get_chunk_info(3)
    with path.open("r+b") as file:
        file.seek(place.byte_offset + 8)
        file.write(b"\xff" * (place.size - 8))
    reader = SplitReader(path)
    assert reader.read("image", 2).shape == (1, 64, 64)
    with pytest.raises(UserError, match=r"train.h5.*damaged"):
        reader.read("image", 3)
