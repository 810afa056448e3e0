"""Sampled positions of the classes of masks."""

import numpy as np
import pytest

from project.data.mask_summary import MAX_POSITIONS, sample_positions, stack_positions
from project.data.split_writer import SplitWriter
from project.data.store import SplitReader


def large_mask() -> np.ndarray:
    mask = np.zeros((300, 400), np.uint8)
    mask[10:20, 30:35] = 1  # 50 pixels
    mask[100:200, 100:300] = 2  # 20,000
    return mask


def test_positions_are_uniform():
    mask, hits = np.ones((256, 256), np.uint8), np.zeros((256, 256))
    for i in range(200):
        positions = sample_positions(mask, [1], str(i))[1]
        assert len(np.unique(positions, axis=0)) == MAX_POSITIONS
        y, x = positions.T
        hits[y, x] += 1
    blocks = hits.reshape(4, 64, 4, 64).sum((1, 3))
    assert blocks.sum() == 200 * MAX_POSITIONS
    assert np.abs(blocks / blocks.mean() - 1).max() < 5 / np.sqrt(blocks.mean())  # 3200 in each


def test_rows_of_samples_and_classes():
    masks = [large_mask(), np.ones((8, 8), np.uint8), large_mask()[::-1]]
    positions = [sample_positions(mask, np.unique(mask).tolist(), "a") for mask in masks]
    counts = np.stack([np.bincount(mask.ravel(), minlength=4) for mask in masks])
    counts[:, 0] = 0  # not annotated
    stacked, starts = stack_positions(positions, counts)
    assert starts.tolist() == [[0, 0, 50, 306, 306], [306] * 5, [306, 306, 356, 612, 612]]
    for mask, row in zip(masks, starts, strict=True):
        for value in range(4):
            y, x = stacked[row[value] : row[value + 1]].T
            assert (mask[y, x] == value).all()
    assert stack_positions(positions[1:2], counts[1:2]) is None


@pytest.mark.parametrize("ragged", [False, True])
def test_a_file_gives_the_positions_of_its_classes(tmp_path, monkeypatch, ragged):
    masks = [large_mask(), large_mask()[::-1].copy(), np.tile(np.uint8([0, 2]), (40, 20)) if ragged else large_mask()]
    ids = ["a", "b", "c"]
    shapes = {"image": [(1, *mask.shape) for mask in masks], "mask": [mask.shape for mask in masks]}
    dtypes = {"image": np.dtype(np.uint8), "mask": np.dtype(np.uint8)}
    with SplitWriter(tmp_path / "train.h5", shapes, dtypes, ids, ids, n_classes=3) as writer:
        for index, mask in enumerate(masks):
            writer.write(index, "image", mask[None])
            writer.write(index, "mask", mask)
        writer.finish({})
    reader = SplitReader(tmp_path / "train.h5")
    with monkeypatch.context() as patch:  # no mask is read
        patch.delattr(SplitReader, "fill")
        for index in range(2):
            for value, n in enumerate([MAX_POSITIONS, 50, MAX_POSITIONS]):
                y, x = reader.class_positions(index, value).T
                assert len(y) == n
                assert (masks[index][y, x] == value).all()
    part = reader.subset([2, 1], {"content_hash": "x"})
    assert len(part.class_positions(0, 2)) == (800 if ragged else MAX_POSITIONS)
    assert np.array_equal(part.class_positions(1, 1), reader.class_positions(1, 1))
