"""Damaged and hostile files of weights: a clear message, no code run, no wrong number taken for a right one."""

import io
import os
import pickle
import random
import resource
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from project.errors import UserError
from project.models.pretrained import Pretrained, load_pretrained, read_file


def content(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = {f"layer{i}.weight": torch.randn(4, 3, generator=generator) for i in range(3)}
    return {"state_dict": weights, "epoch": 3, "hyper_parameters": {"lr": 0.1}, "loops": [1, (2, "a")]}


def changed(original, seed):
    rng, data = random.Random(seed), bytearray(original)
    kind = seed % 4
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.choice((1, 1, 4, 32))):
        place = rng.randrange(len(data))
        if kind == 1:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[place] = rng.randrange(256)
        else:
            data[place : place + 8] = bytes([rng.choice((0, 0xFF, 0x7F))]) * len(data[place : place + 8])
    return bytes(data)


def alike(found, expected):
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(alike(found[key], expected[key]) for key in expected)
    return found == expected


@pytest.mark.slow
def test_damaged_checkpoints_are_told_and_never_taken_for_right(tmp_path):
    """600 files; the format has checksums, so that whatever can be read is what was written."""
    torch.save(content(), tmp_path / "best.ckpt")
    original, told = (tmp_path / "best.ckpt").read_bytes(), 0
    for seed in range(600):
        path = tmp_path / f"{seed}.ckpt"
        path.write_bytes(changed(original, seed))
        try:
            found = read_file(path, "checkpoint")
        except UserError:
            told += 1
        else:
            assert alike(found, content()), seed
        path.unlink()
    assert told > 300


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["old", "safetensors"])
def test_damaged_files_of_other_formats_are_read_or_told(tmp_path, kind):
    """200 files each; these have no checksums."""
    name = "w.safetensors" if kind == "safetensors" else "w.pth"
    if kind == "safetensors":
        save_file(content()["state_dict"], tmp_path / name)
    else:
        torch.save(content(), tmp_path / name, _use_new_zipfile_serialization=False)
    original, told, before = (tmp_path / name).read_bytes(), 0, peak()
    for seed in range(200):
        (tmp_path / name).write_bytes(changed(original, seed))
        net = nn.ModuleDict({f"layer{i}": nn.Linear(3, 4, bias=False) for i in range(3)})
        try:
            load_pretrained(net, Pretrained(str(tmp_path / name)))
        except UserError:
            told += 1
    assert told > 60
    assert peak() - before < 300_000


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# What would run code --------------------------------------------------------------------------------------------------


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def trap_of(tmp_path):
    return str(tmp_path / "executed")


CODE = {
    "os.mkdir": lambda trap: Calls(os.mkdir, trap),
    "os.system": lambda trap: Calls(os.system, f"mkdir {trap}"),
    "eval": lambda trap: Calls(eval, f"__import__('os').mkdir({trap!r})"),
    "exec": lambda trap: Calls(exec, f"import os; os.mkdir({trap!r})"),
    "getattr": lambda trap: Calls(getattr, dict, "fromkeys"),
    "torch.load": lambda trap: Calls(torch.load, trap),
    "import": lambda trap: Calls(__import__, "this"),
    "in a tensor's place": lambda trap: {"a": [{"b": Calls(os.mkdir, trap)}]},
}


@pytest.mark.parametrize("call", CODE.values(), ids=CODE)
@pytest.mark.parametrize("new", [True, False], ids=["new format", "old format"])
def test_no_code_in_a_checkpoint_is_run(tmp_path, call, new):
    trap, path = trap_of(tmp_path), tmp_path / "best.ckpt"
    torch.save(content() | {"extra": call(trap)}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match=r"checkpoint: .*best.ckpt (is refused|cannot be read)"):
        read_file(path, "checkpoint")
    assert not os.path.lexists(trap)


@pytest.mark.parametrize("protocol", range(6))
def test_no_bare_pickle_is_run(tmp_path, protocol):
    trap, path = trap_of(tmp_path), tmp_path / "best.ckpt"
    path.write_bytes(pickle.dumps(Calls(os.mkdir, trap), protocol))
    with pytest.raises(UserError):
        read_file(path, "checkpoint")
    assert not os.path.lexists(trap)


# What would fill the memory -------------------------------------------------------------------------------------------


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(path, files, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def saved(tensor, path):
    torch.save({"state_dict": {"a": tensor}, "epoch": 0}, path)
    return members(path)


def larger(pickled, n, claimed):
    """The number `n`, of a storage's elements, replaced by another."""
    at = pickled.index(b"X\x03\x00\x00\x00cpu")
    short, long = b"K" + bytes([n]), b"\x8a\x08" + struct.pack("<q", claimed)
    place = pickled.index(short, at)
    return pickled[:place] + long + pickled[place + 2 :]


def compressed(path):
    files = saved(torch.zeros(3), path)
    files[next(name for name in files if name.endswith("/data/0"))] = bytes(2 * 10**8)
    written(path, files, zipfile.ZIP_DEFLATED)


def claiming(n):
    def write(path):
        files = saved(torch.arange(7.0), path)
        name = next(name for name in files if name.endswith("data.pkl"))
        written(path, files | {name: larger(files[name], 7, n)})

    return write


def repeated(path):
    torch.save({"state_dict": {"a": torch.zeros(1).expand(10**11)}, "epoch": 0}, path)


def deep(path):
    files = saved(torch.zeros(3), path)
    name = next(name for name in files if name.endswith("data.pkl"))
    written(path, files | {name: b"\x80\x02" + b"(" * 200_000 + b"l" * 200_000 + b"."})


def old_claiming(path):
    buffer = io.BytesIO()
    torch.save(torch.arange(7.0), buffer, _use_new_zipfile_serialization=False)
    path.write_bytes(larger(buffer.getvalue(), 7, 10**12))


LARGE = {
    "compressed zeros": compressed,
    "a storage of a negative size": claiming(-5),
    "one number repeated": repeated,
    "lists in lists": deep,
    "an old file that claims a terabyte": old_claiming,
}


@pytest.mark.parametrize("write", LARGE.values(), ids=LARGE)
def test_what_is_claimed_is_not_allocated(tmp_path, write):
    path, before = tmp_path / "best.ckpt", peak()
    write(path)
    before = max(before, peak())
    with pytest.raises(UserError, match="damaged, incomplete"):
        read_file(path, "checkpoint")
    assert peak() - before < 150_000


@pytest.mark.parametrize("claimed", [50, 10**11])
def test_a_storage_is_no_larger_than_the_file(tmp_path, claimed):
    """The tensor in it is; there are no numbers from beyond the record in it."""
    path, before = tmp_path / "best.ckpt", peak()
    claiming(claimed)(path)
    assert read_file(path, "checkpoint")["state_dict"]["a"].tolist() == list(range(7))
    assert peak() - before < 150_000


def test_a_file_without_checksums_is_read(tmp_path):
    from torch.serialization import set_crc32_options

    set_crc32_options(False)
    try:
        torch.save(content(), tmp_path / "a.pth")
    finally:
        set_crc32_options(True)
    assert alike(read_file(tmp_path / "a.pth", "pretrained"), content())
