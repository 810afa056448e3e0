"""How the cost grows: with images, classes, pixels, epochs and processes."""

import csv
import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from harness import ROOT, Goal, Report, Table, alternate, ratio

# Of the machine that is reckoned with: an H200, a third of whose limit a U-Net may reach.
FLOPS, PEAK, SHARE, BATCH, WEIGHTS = 47e9, 790e12, 0.3, 64, 24.4e6
SAMPLE = 256 * 256 * (2 * 2 + 1)  # bytes: two channels uint16 and a mask
CONFIGS = ("default.yaml", "experiments")


def measure(quick: bool) -> Report:
    """Everything is told as time per sample, or per pixel, against the smallest case."""
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        for part in (_images, _classes, _pixels, _tiles, _epochs, _processes):
            part(Path(folder), quick, report)
    _on_paper(report)
    return report


def _images(folder: Path, quick: bool, report: Report) -> None:
    """Batches in random order out of ever more small images, and the time to open the file."""
    from project.data.dataset import SplitDataset
    from project.data.store import SplitReader

    counts, reads = ((100, 1000), 640) if quick else ((1000, 10_000, 100_000), 6400)
    variants, rows = dict[str, Callable[[], object]](), []
    for count in counts:
        path = folder / f"{count}.h5"
        _write(path, count, (1, 32, 32))
        start = time.perf_counter()
        reader = SplitReader(path)
        opened = time.perf_counter() - start
        dataset = SplitDataset(reader, ["image", "label"])
        rows.append([count, opened * 1000])

        def read(dataset: SplitDataset = dataset, count: int = count) -> None:
            order = np.random.default_rng(0).integers(0, count, reads).tolist()
            for at in range(0, reads, 64):
                dataset.__getitems__([(0, index) for index in order[at : at + 64]])

        with h5py.File(path) as file:
            stored = file["image"]
            pixels = np.memmap(path, stored.dtype, "r", stored.id.get_offset(), stored.shape)
        out = np.empty((64, *pixels.shape[1:]), pixels.dtype)

        def copy(pixels: np.ndarray = pixels, out: np.ndarray = out, count: int = count) -> None:
            order = np.random.default_rng(0).integers(0, count, reads).tolist()
            for at in range(0, reads, 64):
                for position, index in enumerate(order[at : at + 64]):
                    out[position] = pixels[index]

        variants[str(count)], variants[f"{count} by hand"] = read, copy
    seconds = alternate(variants, 1 if quick else 9)
    for row in rows:
        names = str(row[0]), f"{row[0]} by hand"
        row += [*(1e6 * statistics.median(seconds[name]) / reads for name in names), ratio(seconds, *names)]
    few, many = counts[0], counts[-1]
    grown = [many_ / few_ for many_, few_ in zip(seconds[str(many)], seconds[str(few)], strict=True)]
    by_hand = [b / a for b, a in zip(seconds[f"{many} by hand"], seconds[f"{few} by hand"], strict=True)]
    what = f"reading a sample of {many:,} images against one of {few:,}, as a share of what a memory map grows by"
    report.goals.append(Goal(what, statistics.median(g / h for g, h in zip(grown, by_hand, strict=True)), "≤ 1.3"))
    columns = ["images", "opening the file, ms", "per sample, µs", "of a memory map, µs", "ratio"]
    note = "1,000 images lie in the processor's cache, 100,000 do not: that is what grows, for the map too."
    report.tables.append(Table("Images in a split (32 x 32 pixels)", columns, rows, note))


def _classes(folder: Path, quick: bool, report: Report) -> None:
    """Scores of one batch for ever more classes."""
    import torch

    from project.metrics.classification import single_label_scores
    from project.metrics.segmentation import class_counts, overlap_scores

    counts, rows = (2, 50) if quick else (2, 20, 200, 1000), []
    for n in counts:
        generator = torch.Generator().manual_seed(0)
        masks = torch.randint(n, (2, 8, 256, 256), generator=generator, dtype=torch.uint8 if n < 256 else torch.int16)
        labels, probabilities = torch.randint(n, (2000,), generator=generator), torch.rand(2000, n).softmax(1)

        def segmentation(masks: torch.Tensor = masks, n: int = n) -> None:
            overlap_scores(class_counts(masks[0], masks[1], n))

        def classification(p: torch.Tensor = probabilities, labels: torch.Tensor = labels) -> None:
            single_label_scores(p.double(), labels)

        seconds = alternate({"s": segmentation, "c": classification}, 1 if quick else 5)
        rows.append([n, 1000 * min(seconds["s"]) / 8, 1e6 * min(seconds["c"]) / 2000])
    columns = ["classes", "segmentation, ms per 256 x 256 image", "classification, µs per image"]
    report.tables.append(Table("Classes: the scores of validation", columns, rows))


def _pixels(folder: Path, quick: bool, report: Report) -> None:
    """Crops of 256 pixels out of ever larger images."""
    from project.data.dataset import SplitDataset
    from project.data.store import SplitReader

    sides = (512, 1024) if quick else (512, 2048, 8192)
    reads, variants = 64 if quick else 1600, dict[str, Callable[[], object]]()
    for compression in ("none", "blosc2"):
        for side in sides:
            path = folder / f"{side}.{compression}.h5"
            # As many pixels each: only the size of an image differs.
            _write(path, max(1, 2 * (sides[-1] // side) ** 2), (1, side, side), compression)
            dataset = SplitDataset(SplitReader(path), ["image"], crop=256)

            def read(dataset: SplitDataset = dataset) -> None:
                order = np.random.default_rng(0).integers(0, len(dataset), reads).tolist()
                for at in range(0, reads, 16):
                    dataset.__getitems__([(at, index) for index in order[at : at + 16]])

            variants[f"{compression} {side}"] = read
    seconds = alternate(variants, 1 if quick else 5)
    rows = [[side, *(1e6 * min(seconds[f"{c} {side}"]) / reads for c in ("none", "blosc2"))] for side in sides]
    small, large = sides[0], sides[-1]
    report.goals.append(
        Goal(
            f"a crop of an image of {large} px against one of {small} px",
            ratio(seconds, f"none {large}", f"none {small}"),
            "≤ 1.5",
        )
    )
    columns = ["side of the images, pixels", "uncompressed, µs", "blosc2, µs"]
    report.tables.append(Table("Crops of 256 x 256 uint16", columns, rows, "As many pixels in each file."))


def _tiles(folder: Path, quick: bool, report: Report) -> None:
    """Preparing scans in tiles; a process each, of which the peak memory is taken."""
    import tifffile

    sides, rows = (512, 1024) if quick else (2048, 8192), []
    for side in sides:
        raw = folder / f"scan{side}"
        raw.mkdir()
        for number in range(4):
            field = np.random.default_rng(number).integers(100, 400, (side, side), np.uint16)
            tifffile.imwrite(raw / f"{number}.tif", field, tile=(256, 256), compression="zlib")
        command = [sys.executable, __file__, str(raw), str(folder / f"tiles{side}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, peak = map(float, done.stdout.split()[-2:])
        rows.append([side, seconds / (4 * side**2 / 1e6) * 1000, peak / 1e6])
    columns = ["side of the scans, pixels", "ms per million pixels", "peak memory, MB"]
    report.tables.append(Table("Preparing four scans in tiles of 512 pixels", columns, rows))
    report.goals.append(
        Goal(
            f"preparing scans of {sides[1]} px in tiles: peak memory against scans of {sides[0]} px",
            rows[1][2] / rows[0][2],
            "≤ 1.5",
        )
    )


def _prepare_tiles(raw: Path, out: Path) -> None:
    from rich.console import Console

    from project.data.config import DatasetConfig, SizesConfig
    from project.data.preparation.prepare import prepare
    from project.data.preparation.shards import peak_memory

    config = DatasetConfig(str(raw), {"image": "{id}.tif"}, sizes=SizesConfig("tile", 512), near_duplicates="ignore")
    start = time.perf_counter()
    prepare("scans", config, out, Console(file=io.StringIO()), 1)
    print(time.perf_counter() - start, peak_memory())


def _epochs(folder: Path, quick: bool, report: Report) -> None:
    """The same tiny training, early and late: time per epoch, and memory."""
    epochs = 10 if quick else 200
    _write_pairs(folder / "processed" / "tiny", 16, 32)
    seconds, memory = _train(folder / "epochs", folder / "processed", epochs, 1)
    part = epochs // 4
    early, late = seconds[part + 1] - seconds[1], seconds[-1] - seconds[-1 - part]
    half = memory[len(memory) // 2 :]
    report.goals += [
        Goal(
            f"the last quarter of {epochs} epochs against the first: time",
            late / max(early, 0.1),
            "≤ 1.1",
        ),
        Goal(
            f"memory at the end of {epochs} epochs against half way",
            float(max(half) / half[0]) if half else 1.0,
            "≤ 1.03",
        ),
    ]


def _processes(folder: Path, quick: bool, report: Report) -> None:
    """A process for each device, with one thread each, over gloo."""
    images, crops, epochs, rounds = (16, 1, 4, 1) if quick else (64, 4, 6, 3)
    _write_pairs(folder / "processed" / "pairs", images, 64)
    found: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for n in found:
            ends, _ = _train(folder / f"ranks{n}-{turn}", folder / "processed", epochs, n, "pairs", crops)
            # The median, as pictures are drawn in the first epoch and the sixth.
            epoch = statistics.median(later - sooner for sooner, later in itertools.pairwise(ends))
            found[n].append(images * crops / max(epoch, 0.1))
    gain = statistics.median(two / one for one, two in zip(found[1], found[2], strict=True))
    rows: list[list[str | int | float]] = [
        [1, statistics.median(found[1]), 1],
        [2, statistics.median(found[2]), gain / 2],
    ]
    columns = ["processes", "samples/s", "of the ideal"]
    note = "U-Net of `unet_mse`, crops of 64 px, 4 per process and step, one thread each; whole epochs with validation."
    report.tables.append(Table("Processes (gloo, CPU)", columns, rows, note))
    report.goals.append(Goal("two processes with one thread each against one", gain, "≥ 1.5"))


def _on_paper(report: Report) -> None:
    """What larger machines need; nothing here is measured but the time to read a crop."""
    crops = next(table for table in report.tables if table.title.startswith("Crops"))
    read = 2 * float(crops.rows[-1][1]) / 1e6  # seconds, two channels
    rows: list[list[str | int | float]] = []
    for what, gpus, breaks in (
        ("one GPU", 1, "turning crops by the CPU (loader): then geometry on the device"),
        ("eight GPUs, one node", 8, "cores: one for each GPU, and no more for reading than stands here"),
        ("eight nodes", 64, "the file system, unless each node keeps the splits in memory; then the network"),
    ):
        rate = gpus * SHARE * PEAK / FLOPS
        step = BATCH * FLOPS / (SHARE * PEAK)
        network = 2 * 4 * WEIGHTS / step / 1e9 if gpus > 1 else 0.0
        rows.append([what, rate, rate * SAMPLE / 1e9, rate * read, network, breaks])
    columns = ["machine", "samples/s", "read, GB/s", "cores that read", "gradients, GB/s per GPU", "what breaks first"]
    note = (
        f"Not measured but reckoned: U-Net with ResNet-34, {FLOPS / 1e9:.0f} GFLOP per sample of 2 x 256 x 256 at "
        f"{SHARE:.0%} of {PEAK / 1e12:.0f} TFLOP/s, batches of {BATCH} per GPU, gradients in float32 sent and "
        "received once per step, and the time per crop from the table above. The cost in one line: seconds per epoch "
        "= samples x max(step, read / reading cores) / GPUs + validation images x (forward + scores) / GPUs; "
        "neither depends on the number or the size of the images, only the scores grow with the classes."
    )
    report.tables.append(Table("On paper: larger machines", columns, rows, note))


def _train(
    place: Path, processed: Path, epochs: int, devices: int, dataset: str = "tiny", crops: int = 1
) -> tuple[list[float], list]:
    """Train in a process of its own; seconds since the start at the end of each epoch, and resident memory by time."""
    place.mkdir()
    for name in CONFIGS:
        (place / "configs").mkdir(exist_ok=True)
        (place / "configs" / name).symlink_to(ROOT / "configs" / name)
    crop = {"tiny": 32, "pairs": 64}[dataset]
    words = {
        "--data.dataset": dataset,
        "--data.root": processed,
        "--data.crop": crop,
        "--data.crops_per_image": crops,
        "--data.batch_size": 4,
        "--data.num_workers": 0,
        "--trainer.max_epochs": epochs,
        "--trainer.accelerator": "cpu",
        "--trainer.devices": devices,
        "--trainer.strategy": "ddp" if devices > 1 else "auto",
        "--logger": "none",
    }
    if dataset == "tiny":
        words["--model.init_args.net.init_args.width"] = 4
    command = [sys.executable, "-m", "project", "train", "unet_mse", *(str(w) for pair in words.items() for w in pair)]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "PROJECT_RUN_FOLDER")
    }
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (place / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)
        memory = []
        while process.poll() is None:
            time.sleep(0.5)
            if any(place.glob("runs/*/*/history.csv")):
                memory.append(_resident(process.pid))
    if process.returncode:
        raise RuntimeError((place / "log").read_text())
    history = next(place.glob("runs/*/2*/history.csv"))
    with history.open(newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return seconds, [each for each in memory if each]


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


def _write(path: Path, count: int, shape: tuple[int, int, int], compression: str = "none") -> None:
    """A split of images that look like a camera's."""
    from project.data.statistics import SplitStatistics
    from project.data.store import SplitWriter

    rng = np.random.default_rng(0)
    field = rng.poisson(100, (shape[0], 2 * shape[1], 2 * shape[2])).astype(np.uint16)
    ids = [f"{i:06d}" for i in range(count)]
    labels = np.arange(count) % 10
    with SplitWriter(path, {"image": [shape] * count}, {"image": field.dtype}, ids, ids, labels, compression) as writer:
        for index in range(count):
            y, x = rng.integers(0, shape[1:])
            writer.write(index, "image", field[:, y : y + shape[1], x : x + shape[2]])
        writer.finish(_attributes(SplitStatistics(), "image"))


def _write_pairs(folder: Path, count: int, side: int) -> None:
    """A prepared dataset of input and target."""
    from project.data.statistics import SplitStatistics
    from project.data.store import SplitWriter

    folder.mkdir(parents=True)
    statistics = SplitStatistics()
    for split, n in {"train": count, "val": 8, "test": 2}.items():
        rng, ids = np.random.default_rng(n), [f"{split}{i}" for i in range(n)]
        shapes = {role: [(1, side, side)] * n for role in ("image", "target")}
        with SplitWriter(folder / f"{split}.h5", shapes, dict.fromkeys(shapes, np.dtype("u2")), ids, ids) as writer:
            for index in range(n):
                for role in shapes:
                    image = rng.poisson(100, (1, side, side)).astype(np.uint16)
                    writer.write(index, role, image)
                    if split == "train":
                        statistics.add(role, image)
            writer.finish(_attributes(statistics, *shapes))


def _attributes(statistics: Any, *roles: str) -> dict[str, Any]:
    return {
        "channels": {role: ["c"] for role in roles},
        "classes": {"label": [str(i) for i in range(10)]},
        "positive": None,
        "ignore_index": None,
        "split": {},
        "statistics": statistics.summary(),
        "source": {"command": "python tests/benchmarks"},
    }


if __name__ == "__main__":
    _prepare_tiles(*map(Path, sys.argv[1:]))
