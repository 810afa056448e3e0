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

import h5py
import numpy as np
import tifffile
from harness import Goal, Report, Samples, Table
from PIL import Image

KINDS = {"png": "PNG", "zip.tif": "TIFF, deflate", "tif": "TIFF, uncompressed"}


def make_images(folder: Path, count: int, size: int, kind: str) -> None:
    """Raw files."""
    folder.mkdir()
    for index, image in enumerate(Samples("image", count, size)):
        pixels, path = image[0], folder / f"{index:05d}.{kind}"
        if kind == "png":
            Image.fromarray(pixels).save(path, compress_level=1)
        else:
            tifffile.imwrite(path, pixels, compression="zlib" if kind == "zip.tif" else None)


def bound(raw: Path, out: Path) -> None:
    """Decode and write, nothing else."""
    files = sorted(raw.iterdir())
    read = tifffile.imread if files[0].suffix == ".tif" else lambda path: np.asarray(Image.open(path))
    first = read(files[0])
    with h5py.File(out / "bound.h5", "w") as file:
        dataset = file.create_dataset("image", (len(files), 1, *first.shape), first.dtype)
        for index, path in enumerate(files):
            dataset[index, 0] = read(path)


def measured(raw: Path, scratch: Path, processes: int) -> tuple[float, float]:
    """Seconds (without the start of Python and its imports) and peak memory in MB of one run; 0: the bound."""
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        command = [sys.executable, __file__, str(processes), str(raw), out]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def run(processes: int, raw: Path, out: Path) -> None:
    """One program, in this process."""
    from rich.console import Console

    from project.data.config import DatasetConfig
    from project.data.preparation.estimate import peak_memory
    from project.data.preparation.prepare import prepare

    start = time.perf_counter()
    if processes:
        ending = "".join(next(raw.iterdir()).suffixes)
        config = DatasetConfig(str(raw), image={"image": f"{{id}}{ending}"}, near_duplicates="warn")
        prepare("set", config, out, Console(file=io.StringIO()), processes)
    else:
        bound(raw, out)
    print(json.dumps([time.perf_counter() - start, peak_memory() / 1e6]))


def measure(quick: bool) -> Report:
    """2,000 images of 512 x 512 and 20 of 4096 x 4096, by one and two processes; memory for N and 4 N."""
    small, large, rounds = (40, 10, 1) if quick else (2000, 20, 3)
    report, rows, peaks = Report(), [], []
    with tempfile.TemporaryDirectory() as folder:
        scratch, raw = Path(folder), Path(folder) / "raw"
        for count, size in ((small, 512), (large, 1024 if quick else 4096)):
            for kind, name in list(KINDS.items())[2 * quick :]:
                make_images(raw, count, size, kind)
                seconds = [[measured(raw, scratch, n)[0] for n in range(3)] for _ in range(rounds)]
                shutil.rmtree(raw)
                share = statistics.median(plain / one for plain, one, _ in seconds)
                faster = statistics.median(one / two for _, one, two in seconds)
                more = statistics.median(one - plain for plain, one, _ in seconds) / (count * size**2) * 512**2
                rows.append([f"{count} of {size} x {size}", name, seconds[0][0], share, faster, 1000 * more])
                if kind == "png" or quick:
                    what = f"preparing {name} of {size} px"
                    report.goals += [
                        Goal(f"{what}, one process: speed against decoding and writing alone", share, "≥ 0.85"),
                        Goal(f"{what}: two processes against one", faster, "≥ 1.7"),
                    ]
        for count in (small // 4, small):
            make_images(raw, count, 512, "tif")
            peaks.append(measured(raw, scratch, 1)[1])
            shutil.rmtree(raw)
    what = "preparing four times as many images: peak memory against that for one quarter"
    report.goals.append(Goal(what, peaks[1] / peaks[0], "≤ 1.1"))
    columns = ["images", "kind", "bound, s", "share of the bound", "2 processes"]
    note = (
        "The bound decodes and writes; `make data` also finds copies and near-copies, counts every value and hashes "
        f"every image. Peak memory: {peaks[0]:.0f} MB for {small // 4} images, {peaks[1]:.0f} MB for {small}."
    )
    columns.append("more than the bound, ms per 512 x 512")
    report.tables.append(Table("Preparation against the bound", columns, rows, note))
    return report


if __name__ == "__main__":
    run(int(sys.argv[1]), *map(Path, sys.argv[2:]))
