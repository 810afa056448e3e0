"""Files of microscopes hold the pixels that a TIFF file of them would hold; only the part that is needed is read."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from raw_images import RNG, check, check_image, open_image

from project.data.raw.images import FileRef
from project.data.raw.patterns import files_below
from project.errors import UserError

STACK = RNG.integers(0, 65536, (3, 2, 40, 50), np.uint16)  # T, C, Y, X
PAGES = (("T", 1), ("C", "channels"))
MAGIC = {".nd2": b"\xda\xce\xbe\n", ".czi": b"ZISRAWFILE", ".lif": b"\x70\0\0\0"}
reads: list[tuple[str, object]] = []  # what was read from a fake file


class FakeFile:
    """As the readers of nd2, czifile and liffile, of one file with two images of (T, C, Y, X), or one of nd2."""

    dtype, sizes = STACK.dtype, dict(zip("TCYX", STACK.shape, strict=True))

    def __init__(self, path):
        self.images = [FakeImage("first", STACK), FakeImage("second", STACK[::-1])]
        self.scenes = dict(enumerate(self.images))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def read_frame(self, number):
        reads.append(("nd2", number))
        return STACK[number]


class FakeImage:
    dtype, bbox = FakeFile.dtype, (100, 7, 50, 40)

    def __init__(self, name, array):
        self.name, self.array = name, array
        self.sizes = dict(zip("TCYX", array.shape, strict=True))

    def frame(self, T, C):
        reads.append(("lif", (T, C)))
        return self.array[T, C]

    def __call__(self, T, C, roi):
        reads.append(("czi", (T, C, roi)))
        x, y, width, height = roi[0] - 100, roi[1] - 7, *roi[2:]
        return SimpleNamespace(asarray=lambda: self.array[T, C, y : y + height, x : x + width])


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes a file of a suffix, and a package that reads it."""
    for name, cls in (("nd2", "ND2File"), ("czifile", "CziFile"), ("liffile", "LifFile")):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**{cls: FakeFile}))

    def make(suffix: str) -> Path:
        path = tmp_path / f"a{suffix}"
        path.write_bytes(MAGIC[suffix] + bytes(600))
        reads.clear()
        return path

    return make


@pytest.mark.parametrize("suffix", MAGIC)
def test_a_stack_of_a_microscope_equals_a_tiff_file(fake, tmp_path, suffix):
    path, images = fake(suffix), () if suffix == ".nd2" else (("P", 0),)
    other = () if suffix == ".nd2" else (("P", 1),)
    tifffile.imwrite(tmp_path / "a.tif", STACK, imagej=True, metadata={"axes": "TCYX"})
    assert FileRef(path).axis_sizes() == {"P": 2, "T": 3, "C": 2} if images else {"T": 3, "C": 2}
    check_image(open_image(path, pages=(*images, *PAGES)), STACK[1])
    check(tmp_path / "a.tif", STACK[1], pages=PAGES)
    check(path, STACK[0 if other else 2], pages=(*other, ("T", 2), ("C", "channels")))
    check_image(FileRef(path, pages=(*images, ("T", "max"), ("C", 1))).open(), STACK[:, 1].max(0)[None])


def test_only_the_needed_frames_are_read(fake):
    window = (slice(0, 2), slice(10, 12), slice(3, 8))
    for suffix, expected in {
        ".nd2": [("nd2", 1)],
        ".lif": [("lif", (1, 0)), ("lif", (1, 1))],
        ".czi": [("czi", (1, c, (103, 17, 5, 2))) for c in (0, 1)],
    }.items():
        pages = PAGES if suffix == ".nd2" else (("P", 0), *PAGES)
        array = open_image(fake(suffix), pages=pages).read(window)
        np.testing.assert_array_equal(array, STACK[1][window])
        assert reads == expected


@pytest.mark.parametrize(("suffix", "package"), [(".czi", "czifile"), (".zarr", "zarr")])
def test_a_missing_package_is_named(fake, tmp_path, monkeypatch, suffix, package):
    (tmp_path / "a.zarr").mkdir()
    path = tmp_path / "a.zarr" if package == "zarr" else fake(suffix)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package {package}.*: .* -m pip install -e '\.\[formats\]'"):
        open_image(path)


def test_images_of_different_kinds_are_refused(fake, monkeypatch):
    monkeypatch.setattr(FakeImage, "dtype", property(lambda image: np.dtype(f"u{len(image.name) - 4}")))  # u1, u2
    with pytest.raises(UserError, match=r"differ in shape or dtype.*first.*second"):
        open_image(fake(".lif"))


def write_ome_zarr(path: Path, array: np.ndarray, axes: str, form: int) -> None:
    """Format 0.4 (Zarr 2) or 0.5 (Zarr 3), in chunks of 16 x 16 pixels, with a second level."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(path, mode="w", zarr_format=form)
    levels = [{"path": "0"}, {"path": "1"}]
    multiscales = [{"version": "0.4", "axes": [{"name": name} for name in axes.lower()], "datasets": levels}]
    group.attrs.update({"multiscales": multiscales} if form == 2 else {"ome": {"multiscales": multiscales}})
    chunks = (*(1 for _ in axes[:-2]), 16, 16)
    group.create_array("0", shape=array.shape, dtype=array.dtype, chunks=chunks)[...] = array
    group.create_array("1", shape=array.shape, dtype=array.dtype, chunks=chunks)


@pytest.mark.parametrize("form", [2, 3])
def test_an_ome_zarr_folder_is_one_file_of_which_a_window_is_read(tmp_path, form):
    path = tmp_path / "day/a.ome.zarr"
    write_ome_zarr(path, STACK, "TCYX", form)
    (tmp_path / "day/b.tif").touch()
    assert files_below(tmp_path) == ["day/a.ome.zarr", "day/b.tif"]
    check(path, STACK[1], pages=PAGES)
    image = open_image(path, pages=PAGES)
    broken = path / ("0/1.0.2.3" if form == 2 else "0/c/1/0/2/3")  # the chunk of the last rows and columns
    broken.write_bytes(b"broken")
    np.testing.assert_array_equal(image.read((slice(0, 1), slice(3, 30), slice(0, 50))), STACK[1, :1, 3:30])
    with pytest.raises(Exception, match=r".+"):
        image.read((slice(0, 1), slice(30, 40), slice(40, 50)))


def test_zarr_folders_that_are_no_image_are_refused(tmp_path):
    zarr = pytest.importorskip("zarr")
    zarr.open_group(tmp_path / "plate.zarr", mode="w")
    write_ome_zarr(tmp_path / "plate.zarr/A/1/0", STACK[0], "CYX", 3)
    (tmp_path / "A01.zarr").symlink_to(tmp_path / "plate.zarr/A/1/0")
    check(tmp_path / "A01.zarr", STACK[0])
    with pytest.raises(UserError, match="no OME-Zarr image; of a plate, link"):
        open_image(tmp_path / "plate.zarr")
    write_ome_zarr(tmp_path / "of_bioformats2raw.zarr/0", STACK[0], "CYX", 3)
    zarr.open_group(tmp_path / "of_bioformats2raw.zarr").create_group("OME")
    check(tmp_path / "of_bioformats2raw.zarr", STACK[0])
    write_ome_zarr(tmp_path / "of_bioformats2raw.zarr/1", STACK[1], "CYX", 3)
    with pytest.raises(UserError, match="no OME-Zarr image"):
        open_image(tmp_path / "of_bioformats2raw.zarr")
    array = zarr.create_array(tmp_path / "plain.zarr", shape=(40, 50), dtype="uint16", chunks=(16, 16))
    array[...] = STACK[0, 0]
    check(tmp_path / "plain.zarr", STACK[0, :1])
