"""A checkpoint is complete or absent."""

import pytest
import torch

from project.training.checkpoints import AtomicCheckpointIO


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path, writer = tmp_path / "checkpoints/best.ckpt", AtomicCheckpointIO()
    writer.save_checkpoint({"global_step": 1}, path)

    def full(content, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        writer.save_checkpoint({"global_step": 2}, path)
    assert torch.load(path, weights_only=True) == {"global_step": 1}
    assert [file.name for file in path.parent.iterdir()] == ["best.ckpt"]
