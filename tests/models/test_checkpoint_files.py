"""Damaged and hostile files of weights: a clear message, no code run, no wrong number taken for a right one."""

import os
import random

import pytest
import torch

from project.errors import UserError
from project.models.checkpoint_files import read_file

WEIGHTS = {f"layer{i}.weight": torch.full((4, 3), i / 3) for i in range(3)}
CONTENT = {"state_dict": WEIGHTS, "epoch": 3, "loops": [1, (2, "a")]}


def damaged(original: bytes, seed: int) -> bytes:
    """Cut, or with some bits or bytes changed."""
    rng, data = random.Random(seed), bytearray(original)
    if seed % 3 == 0:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.choice((1, 4, 32))):
        position = rng.randrange(len(data))
        data[position] = data[position] ^ (1 << rng.randrange(8)) if seed % 3 == 1 else rng.randrange(256)
    return bytes(data)


@pytest.mark.parametrize(
    ("seeds", "at_least"), [(range(40), 20), pytest.param(range(40, 600), 250, marks=pytest.mark.nightly)]
)
def test_damaged_checkpoints_are_refused_or_read_as_written(tmp_path, seeds, at_least):
    path = tmp_path / "best.ckpt"
    torch.save(CONTENT, path)
    original, refused = path.read_bytes(), 0
    for seed in seeds:
        path.write_bytes(damaged(original, seed))
        try:
            content = read_file(path, "checkpoint")
        except UserError:
            refused += 1
            continue
        assert content.keys() == CONTENT.keys(), seed
        assert (content["epoch"], content["loops"]) == (3, [1, (2, "a")]), seed
        for name, value in WEIGHTS.items():
            assert torch.equal(content["state_dict"][name], value), seed
    assert refused >= at_least


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize(
    "hostile", [lambda trap: Call(os.mkdir, trap), lambda trap: {"a": [Call(os.system, f"mkdir {trap}")]}]
)
def test_code_in_a_checkpoint_is_not_run(tmp_path, hostile, new_format):
    trap, path = tmp_path / "executed", tmp_path / "w.pth"
    torch.save({"state_dict": hostile(str(trap))}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UserError, match="would run code"):
        read_file(path, "pretrained")
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_other_kinds_of_files_are_refused(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{len(content)} bytes. Download it again"):
        read_file(path, "pretrained")
