"""Preparing images against the plainest program that decodes and writes the same bytes.

Each run is a process of its own; the start of Python and its imports do not count.
"""

import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Goal, Report, Table

KINDS = {"png": "PNG", "zip.tif": "TIFF, deflate", "tif": "TIFF, uncompressed"}


def make_images(folder: Path, count: int, size: int, kind: str) -> None:
    """Smooth blobs with the noise of a camera, uint16, each from another place of one large field."""
    import numpy as np
    import tifffile
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    folder.mkdir()
    field = gaussian_filter(rng.random((2 * size, 2 * size), np.float32), 4)
    field = (field - field.min()) / np.ptp(field)
    noise = rng.normal(0, 20, (2 * size, 2 * size)).astype(np.float32)
    for index in range(count):
        y, x, v, u = rng.integers(0, size, 4)
        image = 1000 + 3000 * field[y : y + size, x : x + size] + noise[v : v + size, u : u + size]
        pixels = image.astype(np.uint16)
        if kind == "png":
            Image.fromarray(pixels).save(folder / f"{index:05d}.png", compress_level=1)
        else:
            tifffile.imwrite(folder / f"{index:05d}.{kind}", pixels, compression="zlib" if kind == "zip.tif" else None)


def bound(raw: Path, out: Path) -> None:
    """Decode and write, nothing else."""
    import h5py
    import numpy as np
    import tifffile
    from PIL import Image

    files = sorted(raw.iterdir())
    read = tifffile.imread if files[0].suffix == ".tif" else lambda path: np.asarray(Image.open(path))
    first = read(files[0])
    with h5py.File(out / "bound.h5", "w") as file:
        dataset = file.create_dataset("image", (len(files), 1, *first.shape), first.dtype)
        for index, path in enumerate(files):
            dataset[index, 0] = read(path)


def prepare(raw: Path, out: Path, processes: int) -> None:
    """What `make data` does."""
    from rich.console import Console

    from project.data.config import DatasetConfig
    from project.data.preparation.prepare import prepare

    ending = "".join(next(raw.iterdir()).suffixes)
    config = DatasetConfig(str(raw), image={"image": f"{{id}}{ending}"}, near_duplicates="warn")
    prepare("set", config, out, Console(file=io.StringIO()), processes)


def measured(raw: Path, scratch: Path, *words: str) -> tuple[float, float]:
    """Wall seconds (without the start of Python and its imports) and peak memory in MB of one run."""
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    command = [sys.executable, __file__, *words, str(raw), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(out)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def run(words: list[str]) -> None:
    """One program, in this process."""
    what, raw, out = words[0], Path(words[-2]), Path(words[-1])
    import h5py  # noqa: F401
    import tifffile  # noqa: F401

    import project.data.preparation.prepare  # noqa: F401
    from project.data.preparation.estimate import peak_memory

    start = time.perf_counter()
    if what == "bound":
        bound(raw, out)
    else:
        prepare(raw, out, int(words[1]))
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, peak_memory() / 1e6]))


def measure(quick: bool) -> Report:
    """2,000 images of 512 x 512 and 20 of 4096 x 4096, by one and two processes; memory for N and 4 N."""
    small, large, rounds = (40, 10, 1) if quick else (2000, 20, 3)
    kinds = {"tif": "TIFF, uncompressed"} if quick else KINDS
    report, rows = Report(), []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for count, size in ((small, 512), (large, 1024 if quick else 4096)):
            for kind, name in kinds.items():
                raw = scratch / "raw"
                make_images(raw, count, size, kind)
                found = [
                    (measured(raw, scratch, "bound"), *(measured(raw, scratch, "prepare", n) for n in "12"))
                    for _ in range(rounds)
                ]
                shutil.rmtree(raw)
                share = statistics.median(bound[0] / one[0] for bound, one, _ in found)
                faster = statistics.median(one[0] / two[0] for _, one, two in found)
                over = statistics.median(one[0] - bound[0] for bound, one, _ in found) / (count * size**2) * 512**2
                rows.append([f"{count} of {size} x {size}", name, found[0][0][0], share, faster, 1000 * over])
                if kind == next(iter(kinds)):
                    what = f"preparing {name} of {size} px"
                    report.goals += [
                        Goal(f"{what}, one process: speed against decoding and writing alone", share, "≥ 0.85"),
                        Goal(f"{what}: two processes against one", faster, "≥ 1.7"),
                    ]
        peaks = []
        for count in (small // 4, small):
            make_images(raw, count, 512, "tif")
            peaks.append(measured(raw, scratch, "prepare", "1")[1])
            shutil.rmtree(raw)
    report.goals.append(
        Goal(
            "preparing four times as many images: peak memory against that for one quarter",
            peaks[1] / peaks[0],
            "≤ 1.1",
        )
    )
    report.tables.append(
        Table(
            "Preparation against the bound",
            [
                "images",
                "kind",
                "bound, s",
                "share of the bound",
                "2 processes",
                "more than the bound, ms per 512 x 512",
            ],
            rows,
            "The bound decodes and writes; `make data` also finds copies and near-copies, counts every value and "
            f"hashes every image. Peak memory: {peaks[0]:.0f} MB for {small // 4} images, {peaks[1]:.0f} MB for "
            f"{small}.",
        )
    )
    return report


if __name__ == "__main__":
    run(sys.argv[1:])
