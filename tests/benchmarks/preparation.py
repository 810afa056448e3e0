"""`make bench`: preparing images against the plainest program that decodes and writes the same bytes.

Every figure is a ratio of two programs that ran one after the other, in processes of their own; of several rounds the
median is told. Nothing here is asserted: machines are noisy.
"""

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
    command = [sys.executable, __file__, "--run", *words, str(raw), str(out)]
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
    from project.data.preparation.shards import peak_memory

    start = time.perf_counter()
    if what == "bound":
        bound(raw, out)
    else:
        prepare(raw, out, int(words[1]))
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, peak_memory() / 1e6]))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=2000, help="number of images of 512 x 512")
    parser.add_argument("--large", type=int, default=20, help="number of images of 4096 x 4096")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--run", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run)
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        print("| images | kind | bound, s | share of the bound, 1 process | 2 processes: times as fast |")
        print("|---|---|---:|---:|---:|")
        for count, size in ((options.small, 512), (options.large, 4096)):
            for kind in options.kinds:
                raw = scratch / "raw"
                make_images(raw, count, size, kind)
                rounds = [
                    (measured(raw, scratch, "bound"), *(measured(raw, scratch, "prepare", n) for n in "12"))
                    for _ in range(options.rounds)
                ]
                shutil.rmtree(raw)
                low = statistics.median(b[0] for b, _, _ in rounds)
                share = statistics.median(b[0] / one[0] for b, one, _ in rounds)
                faster = statistics.median(one[0] / two[0] for _, one, two in rounds)
                told = f"| {low:.2f} | {share:.2f} | {faster:.2f} |"
                print(f"| {count} of {size} x {size} | {KINDS[kind]} {told}", flush=True)
        print("\n| images of 512 x 512 | peak memory, MB |\n|---|---:|")
        for count in (options.small // 4, options.small):
            make_images(raw, count, 512, "tif")
            print(f"| {count} | {measured(raw, scratch, 'prepare', '1')[1]:.0f} |", flush=True)
            shutil.rmtree(raw)


if __name__ == "__main__":
    main()
