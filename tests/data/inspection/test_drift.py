"""Drift in an inspection: what several channels say is in one sentence."""

import numpy as np
from test_report import look, noise, said, write


def test_what_several_channels_say_is_said_once(tmp_path):
    names = {"channels": {"image": ["red", "green", "blue"]}}
    dark = [i // 10 for i in noise(3, shape=(3, 16, 16))]
    images = noise(8, shape=(3, 16, 16))
    images[2][:] = 65535
    images[5][1, :8] = 65535
    write(tmp_path, "train", {"image": images + dark}, groups=["a"] * 4 + ["b"] * 4 + ["c"] * 3, **names)
    write(
        tmp_path,
        "val",
        {"image": [i[0:1] // 30 + 0 * i for i in noise(3, shape=(3, 16, 16))]},
        groups=["d"] * 3,
        **names,
    )
    report = look(tmp_path)
    for kind in ("than train: mean", "another brightness", "one value everywhere", "at the largest value"):
        assert len(said(report, kind)) <= 1
    assert said(report, "image/red, green, blue: val is not as bright as train: red ", "green ", "blue ")
    assert said(report, "image/red, green, blue: 2 of 4 groups have another brightness", "c (red mean ")
    assert said(report, "image/red, green, blue: 1 of 14 images has one value everywhere: train2 (train, red, 65535)")
    # The image whose green alone is saturated counts too, and its channel is named.
    assert said(
        report, "image/red, green, blue: 2 of 14 images have", "train2 (train, red, 100 %), train5 (train, green, "
    )


def test_notes_on_several_channels_are_one(tmp_path):
    image = np.stack([np.full((8, 8), 10), np.full((8, 8), 20)]).astype(np.uint16)
    image[:, 0, 0] = 0, 1
    write(tmp_path, "train", {"image": [image]})
    (note,) = (n for n in look(tmp_path)["notes"] if "8-bit" in n)
    assert note.startswith("image/c0, c1: 8-bit values in uint16 files (largest value 10 / 20)")
