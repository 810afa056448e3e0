"""Files are paired by their names; whatever does not pair is told, all at once."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from project.data.config import DatasetConfig, TableConfig
from project.data.sources import Pattern, find_labels, find_samples, read_role
from project.errors import UserError


@pytest.fixture
def raw(tmp_path):
    """A folder and a way to fill it with tiny images."""
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def put(folder: Path, *names: str, shape: tuple[int, ...] = (4, 5), fill: int = 0) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / name, np.full(shape, fill, np.uint16), photometric="minisblack")


def find(folder: Path, image: dict[str, str] | str, **options):
    return find_samples(DatasetConfig(str(folder), {"a": image} if isinstance(image, str) else image, **options))


def problem(folder: Path, image: dict[str, str] | str, **options) -> str:
    with pytest.raises(UserError) as caught:
        find(folder, image, **options)
    return str(caught.value)


def test_plain_pairs(raw):
    put(raw, "in/b.tif", "in/a.tif", "out/a.tif", "out/b.tif", "notes/c.tif")
    samples = find(raw, "in/{id}.tif", target={"t": "out/{id}.tif"}, mask="in/{id}.tif")
    assert [s.id for s in samples] == [s.group for s in samples] == ["a", "b"]
    assert samples[1].files == {
        "image": [(raw / "in/b.tif", None)],
        "target": [(raw / "out/b.tif", None)],
        "mask": [(raw / "in/b.tif", None)],
    }


def test_further_fields_belong_to_the_id(raw):
    put(raw, "s1/a/x.tif", "s1/b/x.tif", "s2/a/x.tif", "s2/b/x.tif")
    samples = find(raw, "{set}/a/{id}.tif", target={"t": "{set}/b/{id}.tif"}, group="{set}")
    assert [(s.id, s.group) for s in samples] == [("s1/x", "s1"), ("s2/x", "s2")]
    assert samples[1].files["target"] == [(raw / "s2/b/x.tif", None)]


def test_suffixes_and_prefixes(raw):
    put(raw, "ds1/raw/01.tif", "ds1/binary/01_suffix.tif", "ds1/raw/02.tif", "ds1/binary/02_suffix.tif")
    samples = find(raw, "ds1/raw/{id}.tif", mask="ds1/binary/{id}_suffix.tif")
    assert [s.files["mask"][0][0].name for s in samples] == ["01_suffix.tif", "02_suffix.tif"]


def test_fields_in_another_order_pair_up(raw):
    put(raw, "d1/w2/i3.tif", "w2/i3_d1.tif", "d2/w1/i3.tif", "w1/i3_d2.tif")
    samples = find(raw, "{day}/{well}/{id}.tif", target={"t": "{well}/{id}_{day}.tif"}, group="{day}-{well}")
    assert [s.files["target"][0][0].name for s in samples] == ["i3_d1.tif", "i3_d2.tif"]
    assert [s.group for s in samples] == ["d1-w2", "d2-w1"]


def test_a_field_that_stands_twice_must_agree(raw):
    put(raw, "d1/d1_a.tif", "d1/d2_b.tif")
    assert [s.id for s in find(raw, "{day}/{day}_{id}.tif")] == ["d1/a"]


def test_star_stands_for_anything_within_a_name(raw):
    put(raw, "x/a_2024.tif", "y/b_2025.tif", "y/deep/c_1.tif")
    assert [s.id for s in find(raw, "*/{id}_*.tif")] == ["a", "b"]


def test_pattern_signs_of_regular_expressions_are_plain_letters(raw):
    put(raw, "a+b (1)/x.tif", "aab (1)/y.tif")
    assert [s.id for s in find(raw, "a+b (1)/{id}.tif")] == ["x"]


def test_channels_of_one_file(raw):
    tifffile.imwrite(raw / "a.tif", np.arange(60, dtype=np.uint16).reshape(3, 4, 5), photometric="minisblack")
    (sample,) = find(raw, {"two": "{id}.tif[2]", "zero": "{id}.tif[0]"}, target={"one": "{id}.tif[1]"})
    assert read_role(sample, "image", None)[:, 0, 0].tolist() == [40, 0]
    assert read_role(sample, "target", None)[:, 0, 0].tolist() == [20]
    (sample,) = find(raw, "{id}.tif[3]")
    with pytest.raises(UserError, match=r"a\.tif: there is no channel 3: the file has 3"):
        read_role(sample, "image", None)


def test_brackets_elsewhere_are_part_of_the_name(raw):
    put(raw, "set[1]/a.tif", "b[7].tif")
    assert [s.id for s in find(raw, "set[1]/{id}.tif[0]")] == ["a"]
    assert Pattern.parse("set[1]/{id}.tif[12]").channel == 12
    assert Pattern.parse("set[1]/{id}.tif").channel is None


def test_names_beyond_ascii(raw):
    put(raw, "Hefe/Zelle ü 1.tif", "Hefe/細胞.tif")
    samples = find(raw, "{strain}/{id}.tif", group="{strain}")
    assert [s.id for s in samples] == ["Hefe/Zelle ü 1", "Hefe/細胞"]
    assert read_role(samples[1], "image", None).shape == (1, 4, 5)


def test_hidden_files_are_no_images(raw):
    put(raw, "a.tif")
    (raw / "._a.tif").write_bytes(b"what macOS leaves on foreign disks")
    assert [s.id for s in find(raw, "{id}.tif")] == ["a"]


def test_every_file_without_partner_is_listed(raw):
    put(raw, "in/a.tif", "in/b.tif", "in/c.tif", "out/c.tif", "out/d.tif", "m/c.tif", "m/b.tif")
    message = problem(raw, "in/{id}.tif", target={"t": "out/{id}.tif"}, mask="m/{id}.tif")
    assert message.count("\n  - ") == 4
    for line in (
        'a: no target file for "out/{id}.tif"',
        'b: no target file for "out/{id}.tif"',
        'd: out/d.tif has no partner for "in/{id}.tif"',
        'a: no mask file for "m/{id}.tif"',
    ):
        assert f"- {line}\n" in message


def test_a_second_channel_needs_its_file_too(raw):
    put(raw, "a_c0.tif", "a_c1.tif", "b_c0.tif")
    assert "b: no image file for" in problem(raw, {"x": "{id}_c0.tif", "y": "{id}_c1.tif"})


def test_long_lists_are_cut(raw):
    put(raw, *(f"in/{i:02d}.tif" for i in range(30)), "out/x.tif")
    assert "and 19 more" in problem(raw, "in/{id}.tif", target={"t": "out/{id}.tif"})


def test_an_id_found_twice(raw):
    put(raw, "x/a.tif", "y/a.tif")
    assert "a: found twice, x/a.tif and y/a.tif" in problem(raw, "*/{id}.tif")


def test_no_folder_and_nothing_in_it(raw):
    assert "is empty" in problem(raw, "{id}.tif")
    assert "does not exist" in problem(raw / "nowhere", "{id}.tif")
    put(raw, "a.tif")
    assert "does not exist" in problem(raw / "a.tif", "{id}.tif")


def test_no_match_shows_what_there_is(raw):
    put(raw, "images/a.tif", "images/b.tiff")
    message = problem(raw, "image/{id}.tif")
    assert '"image/{id}.tif"' in message
    assert '"images/a.tif"' in message
    assert "(2 files of kind .tif, .tiff)" in message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("images/a.tif", "needs an {id}"),
        ("{1}/{name}.tif", "needs an {id}"),
        ("../{id}.tif", "below the raw folder"),
        ("a/../{id}.tif", "below the raw folder"),
        ("/data/{id}.tif", "below the raw folder"),
        ("{id}.czi", "must end in one of"),
        ("{id}", "must end in one of"),
    ],
)
def test_patterns_that_cannot_work(raw, text, why):
    put(raw, "a.tif")
    message = problem(raw, text)
    assert why in message
    assert f'"{text}"' in message


def test_patterns_with_different_fields_cannot_pair(raw):
    put(raw, "d/a.tif", "b.tif")
    assert "same fields" in problem(raw, "{day}/{id}.tif", target={"t": "{id}.tif"})


def test_group_from_an_unknown_field(raw):
    put(raw, "d/a.tif")
    for template in ("{plate}", "{}", "{0}", "{day", "{day.x}", "{day:d}"):
        assert "must be made of the fields day, id" in problem(raw, "{day}/{id}.tif", group=template)


# --- tables ---


def write_table(folder: Path, text: str, encoding: str = "utf-8") -> None:
    (folder / "t.csv").write_bytes(text.encode(encoding))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_table_gives_labels_and_groups(raw, encoding, newline):
    put(raw, "a.tif", "ü.tif")
    write_table(
        raw, newline.join(["id,kind,plate", "ü, dead ,p2", "unused,alive,p9", '"a","alive","p1"', ""]), encoding
    )
    samples = find(raw, "{id}.tif", table=TableConfig("t.csv", label="kind", group="plate"))
    assert [(s.id, s.label, s.group) for s in samples] == [("a", "alive", "p1"), ("ü", "dead", "p2")]


def test_table_ids_are_spelt_with_all_fields(raw):
    put(raw, "d1/a.tif")
    write_table(raw, "sample,kind\nd1/a,x\n")
    (sample,) = find(raw, "{day}/{id}.tif", table=TableConfig("t.csv", id="sample", label="kind"), group="{day}")
    assert (sample.label, sample.group) == ("x", "d1")


def test_rows_that_are_missing_doubled_or_empty_are_listed(raw):
    put(raw, *(f"{name}.tif" for name in "abcdef"))
    write_table(raw, "id,kind,plate\na,x,p\nb,x,p\nb,y,p\nc, ,p\ne\nf,x,\n")
    message = problem(raw, "{id}.tif", table=TableConfig("t.csv", label="kind", group="plate"))
    for line in (
        'b: 2 rows with this "id"',
        'c: the "kind" is empty',
        'd: no rows with this "id"',
        'e: the "kind" is empty',
        'e: the "plate" is empty',
        'f: the "plate" is empty',
    ):
        assert f"- {line}\n" in message
    assert message.count("\n  - ") == 6


def test_column_that_is_misspelt(raw):
    put(raw, "a.tif")
    write_table(raw, "id,label\na,x\n")
    message = problem(raw, "{id}.tif", table=TableConfig("t.csv", label="labels"))
    assert 'no column "labels". Did you mean "label"?' in message


def test_no_table_and_unreadable_tables(raw):
    put(raw, "a.tif")
    table = TableConfig("t.csv", label="label")
    assert "does not exist" in problem(raw, "{id}.tif", table=table)
    write_table(raw, "")
    assert 'no column "id"' in problem(raw, "{id}.tif", table=table)
    write_table(raw, "id,label\na,größer\n", "latin-1")
    assert "t.csv: cannot be read" in problem(raw, "{id}.tif", table=table)


def test_several_classes_in_a_cell(raw):
    put(raw, *(f"{name}.tif" for name in "abc"))
    write_table(raw, "id,kind\na, round ;budding;\nb,\nc,dead\n")
    samples = find(raw, "{id}.tif", table=TableConfig("t.csv", label="kind", separator=";"))
    assert [s.label for s in samples] == [("round", "budding"), (), ("dead",)]
    labels = find_labels(samples, [])
    assert labels.names == ["budding", "dead", "round"]
    assert labels.encode(samples).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert labels.encode(samples[1:2]).tolist() == [[0, 0, 0]]


def test_stray_labels_are_all_listed(raw):
    put(raw, *(f"{i:02d}.tif" for i in range(40)))
    write_table(raw, "id,kind\n" + "".join(f"{i:02d},{'good' if i < 10 else f'x{i % 20};y'}\n" for i in range(40)))
    samples = find(raw, "{id}.tif", table=TableConfig("t.csv", label="kind", separator=";"))
    with pytest.raises(UserError) as caught:
        find_labels(samples, ["good"])
    message = str(caught.value)
    assert message.count("\n  - ") == 21
    assert "- x0: 20\n" in message
    assert "- x15: 15, 35\n" in message
    assert "- y: 10, 11, 12 and 27 more\n" in message


def test_no_label_at_all(raw):
    put(raw, "a.tif")
    write_table(raw, "id,kind\na,\n")
    samples = find(raw, "{id}.tif", table=TableConfig("t.csv", label="kind", separator=";"))
    with pytest.raises(UserError, match="no image has a label"):
        find_labels(samples, [])


# --- fields with a meaning ---


def test_folders_named_after_classes_and_splits(raw):
    put(raw, "Training/cat/1.tif", "Training/dog/1.tif", "valid/cat/1.tif", "test/dog/2.tif")
    samples = find(raw, "{split}/{label}/{id}.tif")
    assert [(s.id, s.label, s.split) for s in samples] == [
        ("cat/Training/1", "cat", "train"),
        ("cat/valid/1", "cat", "val"),
        ("dog/Training/1", "dog", "train"),
        ("dog/test/2", "dog", "test"),
    ]
    labels = find_labels(samples, ["dog", "cat"])
    assert labels.encode(samples).tolist() == [1, 1, 0, 0]


def test_every_folder_that_is_no_split_is_listed(raw):
    put(raw, "train/1.tif", "dev/1.tif", "dev/2.tif", "extra/1.tif")
    message = problem(raw, "{split}/{id}.tif")
    assert '- "dev" (2 files)\n  - "extra" (1 files)' in message


def test_labels_from_two_places():
    with pytest.raises(UserError, match=r"the column `table\.label` and from the field \{label\}"):
        DatasetConfig("raw", {"a": "{label}/{id}.tif"}, table=TableConfig("t.csv", label="kind"))


def test_a_separator_needs_a_label_column():
    for table in (TableConfig("t.csv", separator=";"), TableConfig("t.csv", label="kind", separator="")):
        with pytest.raises(UserError, match="separator"):
            DatasetConfig("raw", {"a": "{id}.tif"}, table=table)


# --- names of classes ---

IMAGE, LABEL = {"image": {"a": "{id}.tif"}}, {"table": TableConfig("t.csv", label="kind")}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"classes": ["a", "b"], **LABEL}, {"label": ["a", "b"]}),
        ({"classes": ["a", "b"], "mask": "m/{id}.tif"}, {"mask": ["a", "b"]}),
        ({"classes": ["a", "b"], "instances": "m/{id}.tif"}, {"mask": ["a", "b"]}),
        ({"classes": ["a", "b"], "image": {"a": "{label}/{id}.tif"}}, {"label": ["a", "b"]}),
        ({"classes": {"mask": ["a"], "label": ["a"]}, "mask": "m/{id}.tif", **LABEL}, {"mask": ["a"], "label": ["a"]}),
        ({}, {}),
    ],
)
def test_whose_names_these_are(options, expected):
    assert DatasetConfig("raw", **IMAGE | options).classes == expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"classes": ["a", "b"], "mask": "m/{id}.tif", **LABEL}, "both a mask and labels"),
        ({"classes": ["a", "b"]}, "neither mask nor labels"),
        ({"classes": {"labels": ["a"], "pixel": ["b"]}, **LABEL}, "unknown key labels, pixel"),
        ({"classes": {"mask": ["a"], "label": ["b"]}}, "no mask and no label"),
        ({"classes": {"label": ["a", "b", "a", "c", "c"]}, **LABEL}, "- label: a\n  - label: c"),
        ({"classes": {"mask": ["a", "b", "c"]}, "instances": "m/{id}.tif"}, "has two classes"),
    ],
)
def test_names_that_are_not_clear(options, told):
    with pytest.raises(UserError) as caught:
        DatasetConfig("raw", **IMAGE | options)
    assert told in str(caught.value)


# --- pixels ---


def test_channels_are_stacked_in_the_order_of_the_configuration(raw):
    put(raw, "a_z.tif", fill=1)
    put(raw, "a_b.tif", fill=2, shape=(2, 4, 5))
    (sample,) = find(raw, {"z": "{id}_z.tif", "b": "{id}_b.tif"})
    assert read_role(sample, "image", None)[:, 0, 0].tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 3], [1, 2]], np.uint8), np.uint8),
        (np.array([[0, 60000], [1, 2]], np.uint16), np.uint16),
        (np.array([[0, 60000], [1, 2]], np.int32), np.uint16),
        (np.array([[0, 7], [1, 2]], np.float64), np.uint16),
        (np.array([[False, True], [True, True]]), np.uint8),
    ],
)
def test_masks_are_whole_numbers_without_a_channel_axis(raw, array, expected):
    np.save(raw / "a.npy", array)
    (sample,) = find(raw, "{id}.npy", mask="{id}.npy")
    mask = read_role(sample, "mask", None)
    assert mask.dtype == expected
    np.testing.assert_array_equal(mask, array)


@pytest.mark.parametrize("bad", [0.5, -1, 65536, np.nan, np.inf])
def test_masks_with_other_numbers_are_refused(raw, bad):
    np.save(raw / "a.npy", np.array([[0, bad]]))
    (sample,) = find(raw, "{id}.npy", instances="{id}.npy")
    with pytest.raises(UserError, match=r"a\.npy: a instances image holds whole numbers"):
        read_role(sample, "instances", None)


def test_coloured_masks_are_refused(raw):
    put(raw, "a.tif", shape=(3, 4, 5))
    (sample,) = find(raw, "{id}.tif", mask="{id}.tif")
    with pytest.raises(UserError, match=r"a\.tif: .* one channel, this has 3"):
        read_role(sample, "mask", None)


def test_a_file_that_cannot_be_read_is_named(raw):
    put(raw, "a.tif")
    (sample,) = find(raw, "{id}.tif")
    (raw / "a.tif").write_bytes((raw / "a.tif").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"a\.tif: the file is cut off"):
        read_role(sample, "image", None)
    (raw / "a.tif").unlink()
    with pytest.raises(UserError, match=r"a\.tif: cannot be read"):
        read_role(sample, "image", None)
