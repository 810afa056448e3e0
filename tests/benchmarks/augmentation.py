"""Geometric augmentation: in workers against albumentations alone, and on the device.

albumentations is given the same arrays and seeds; and, beside that, what suits it best.
"""

import random
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from harness import Goal, Report, Table, alternate, ratio

SIZE, CHANNELS, BATCH = 256, 2, 16
IMAGES = 4  # few enough to stay in the cache, as a crop that has just been read
AFFINE: dict[str, Any] = {"rotate": (-180, 180), "scale": (0.8, 1.25), "shear": (-10, 10)}
ELASTIC = {"alpha": 150.0, "sigma": 10.0}


def make_samples(count: int, size: int) -> list[dict[str, np.ndarray]]:
    """Blurred cells on a background, with the noise of a camera: 100 to some 400 of uint16, and a mask."""
    from scipy.ndimage import gaussian_filter

    rng, samples = np.random.default_rng(0), []
    for _ in range(count):
        level = gaussian_filter(rng.random((CHANNELS, size, size), np.float32), (0, size / 32, size / 32))
        level = (level - level.min()) / np.ptp(level)
        image = 100 + rng.poisson(20 + 200 * level**3)
        samples.append({"image": image.astype(np.uint16), "mask": (level[0] > 0.6).astype(np.uint8)})
    return samples


def transforms() -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """What is compared: albumentations' transforms, and the arguments of `DeviceGeometry`."""
    import albumentations as A
    import cv2

    border = {"border_mode": cv2.BORDER_REFLECT_101, "p": 1}
    affine, elastic = A.Affine(**AFFINE, **border), A.ElasticTransform(**ELASTIC, **border)
    return {
        "D4": ([A.D4()], {}),
        "affine": ([affine], {"symmetry": "none", **AFFINE}),
        "D4, affine": ([A.D4(), affine], AFFINE),
        "D4, affine, elastic": ([A.D4(), affine, elastic], {**AFFINE, **ELASTIC}),
    }


def in_workers(samples: list[dict[str, np.ndarray]], chain: list[Any], count: int) -> dict[str, Callable[[], None]]:
    """Ways to augment so many samples, in this process, and to put them into a batch."""
    import albumentations as A
    import cv2

    from project.data.augment import GeometricAugmentation

    compose, augment = A.Compose(chain), GeometricAugmentation(chain)
    seeds = np.random.SeedSequence(0).spawn(count)
    last = [{**s, "image": np.ascontiguousarray(s["image"].transpose(1, 2, 0))} for s in samples]
    batch, last_batch = ({k: np.empty((BATCH, *v.shape), v.dtype) for k, v in s[0].items()} for s in (samples, last))

    def ours() -> None:
        for i, seed in enumerate(seeds):
            for role, array in augment(samples[i % IMAGES], seed).items():
                batch[role][i % BATCH] = array

    def same() -> None:
        for i, seed in enumerate(seeds):
            words = seed.generate_state(2, np.uint64)
            compose.set_random_state(np.random.default_rng(words[0]), random.Random(int(words[1])))
            sample = samples[i % IMAGES]
            moved = compose(image=cv2.merge(list(sample["image"])), mask=sample["mask"])
            cv2.split(moved["image"], list(batch["image"][i % BATCH]))
            batch["mask"][i % BATCH] = moved["mask"]

    def alone() -> None:
        for i in range(count):
            for role, array in compose(**last[i % IMAGES]).items():
                last_batch[role][i % BATCH] = array

    return {"ours": ours, "same": same, "alone": alone}


def on_device(samples: list[dict[str, np.ndarray]], options: dict[str, Any], device: str) -> Callable[[], None]:
    """`DeviceGeometry` on a batch that lies on the device."""
    import torch

    from project.transforms.device import DeviceGeometry

    geometry = DeviceGeometry(**options)
    chosen = [samples[i % IMAGES] for i in range(BATCH)]
    batch = {role: torch.from_numpy(np.stack([s[role] for s in chosen])).to(device) for role in chosen[0]}

    def run() -> None:
        geometry(batch)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def measure(quick: bool) -> Report:
    """Samples of 2 x 256 x 256 uint16 with a mask; batches of 16."""
    import torch

    torch.set_num_threads(1)  # more would wait for work beside what is timed next
    size, count, rounds = (64, 4, 1) if quick else (SIZE, 64, 21)
    samples = make_samples(IMAGES, size)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows: list[list[str | int | float]] = []
    faster = {}
    for name, (chain, options) in transforms().items():
        seconds = alternate(in_workers(samples, chain, count), rounds)
        seconds |= alternate({device: on_device(samples, options, device) for device in devices}, rounds)
        faster[name] = ratio(seconds, "same", "ours")
        ms = {variant: 1000 * statistics.median(taken) for variant, taken in seconds.items()}
        per_sample = [ms[variant] / count for variant in ("ours", "same", "alone")]
        rows.append([name, *per_sample, faster[name], *(ms[device] for device in devices)])
    of = f"{CHANNELS} x {size} x {size} uint16 and a mask"
    table = Table(
        f"Geometric augmentation of {of}, in ms",
        [
            "transforms",
            "`data.transforms`, per sample",
            "albumentations, same arrays and seeds",
            "albumentations alone",
            "times as fast as the same",
            *(f"`DeviceGeometry` on {device}, per batch of {BATCH}" for device in devices),
        ],
        rows,
        "All but `DeviceGeometry` as in one worker, up to the copy into a batch. With the same arrays and seeds, "
        "albumentations gets channels first, and generators for each sample; alone, it gets channels last and its "
        "draws follow one stream. One thread.",
    )
    return Report([Goal(f"D4 of {of}: times as fast as albumentations", faster["D4"], "≥ 3")], [table])
