"""Images without targets become unlabeled.h5."""

import numpy as np
import pytest
import tifffile

MORE = {"a": "more/{id}.tif"}


def more(folder, n=5, **options):
    for i in range(n):
        folder.put(f"more/u{i}.tif", **options)


def test_they_stand_beside_the_splits_as_the_camera_wrote_them(folder):
    folder.pairs()
    more(folder)
    without = folder.prepare()
    readers = folder.prepare(unlabelled=MORE)
    reader = readers["unlabeled"]
    assert reader.ids == [f"u{i}" for i in range(5)]
    assert list(reader.dtypes) == ["image"]
    for index, id_ in enumerate(reader.ids):
        np.testing.assert_array_equal(reader.read("image", index)[0], folder.images[f"more/{id_}.tif"])
    assert reader.image_statistics["image"][:, 0, 0].tolist() == [
        folder.images[f"more/{i}.tif"].min() for i in reader.ids
    ]
    # The splits are what they were, and so are their statistics, which do not count these images.
    for split in ("train", "val", "test"):
        assert readers[split].content_hash == without[split].content_hash
    assert reader.attributes["statistics"] == readers["train"].attributes["statistics"]
    assert reader.attributes["statistics"] == without["train"].attributes["statistics"]
    again = folder.prepare(unlabelled=MORE)["unlabeled"]
    assert again.content_hash == reader.content_hash
    assert "unlabeled" not in folder.prepare()


def test_those_that_are_left_out_are_listed_apart_from_images_of_the_same_id(folder):
    folder.pairs()
    for i in range(6):
        folder.put(f"more/{i}.tif", dtype=np.uint16)
    (folder.raw / "more/0.tif").write_bytes(b"")  # no header
    folder.put("more/1.tif", dtype=np.uint8, high=200)  # another kind
    tifffile.imwrite(folder.raw / "more/2.tif", folder.images["more/2.tif"], compression="zlib")
    with tifffile.TiffFile(folder.raw / "more/2.tif") as file:
        start = file.pages[0].dataoffsets[0]
    content = (folder.raw / "more/2.tif").read_bytes()
    (folder.raw / "more/2.tif").write_bytes(content[:start] + bytes(20) + content[start + 20 :])  # cannot be decoded
    message = folder.problem(unlabelled=MORE)
    assert message.startswith("unlabelled: ")
    readers = folder.prepare(unlabelled=MORE, on_error="skip")
    assert readers["unlabeled"].ids == ["3", "4", "5"]
    skipped = dict(readers["train"].attributes["skipped"])
    assert set(skipped) == {f"{i} (unlabeled)" for i in range(3)}
    assert all(f"{id_}: " in folder.output for id_ in skipped)
    assert sum(len(readers[split]) for split in ("train", "val", "test")) == len(list((folder.raw / "in").iterdir()))


@pytest.mark.parametrize(
    ("options", "message_part"), [({"dtype": np.uint8, "high": 200}, "of uint8"), ({"shape": (2, 12, 10)}, "2 channel")]
)
def test_another_kind_of_image_is_refused(folder, options, message_part):
    folder.pairs()
    more(folder, **options)
    message = folder.problem(unlabelled=MORE)
    assert "must be of one kind" in message
    assert message_part in message
