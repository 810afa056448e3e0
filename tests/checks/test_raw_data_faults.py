"""Faults in raw files as a user makes them: through `make data` to the finding that names them; and sound neighbors."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from rich.console import Console
from scipy.ndimage import gaussian_filter
from skimage.measure import label
from skimage.transform import resize

from project.checks import groups, inputs, pixels
from project.checks.alignment import alignment
from project.checks.data import contradictions
from project.checks.labels import classes
from project.checks.report import LEVELS, ok
from project.data.config_reader import build_config
from project.data.preparation.prepare import prepare
from project.errors import UserError

N, SIDE = 18, 48
SPLIT = {"fractions": {"train": 0.7, "val": 0.3}, "seed": 1}
COMMON = {"image": {"x": "{day}/x_{id}.tif"}, "near_duplicates": "ignore", "split": SPLIT}
PAIRS = COMMON | {"target": {"t": "{day}/t_{id}.tif"}}
MASKS = COMMON | {"mask": "{day}/t_{id}.tif"}
TABLE = COMMON | {"table": {"path": "labels.csv", "label": "label"}}
KINDS = {"target": "translation", "mask": "segmentation", "table": "classification"}
Image = np.ndarray


def day(i: int) -> str:
    return ["monday", "tuesday", "friday"][i % 3]


def cells(i: int) -> Image:
    """Blobs, without noise."""
    return np.clip(gaussian_filter(np.random.default_rng(i).normal(0, 1, (SIDE, SIDE)), 3) * 8, 0, 2)


def phase(i: int) -> Image:
    """Cells as a noisy camera with the counts 2000 to 6000 sees them."""
    noise = np.random.default_rng(i + 99).normal(0, 300, (SIDE, SIDE))
    return (3000 + 1000 * gaussian_filter(cells(i), 1) + noise).clip(2000, 9000).astype(np.uint16)


def glow(i: int) -> Image:
    """Fluorescence of the same cells, from 300 on."""
    noise = np.random.default_rng(i + 999).normal(0, 25, (SIDE, SIDE))
    return (400 + 300 * cells(i) ** 2 + np.abs(noise)).astype(np.uint16)


def mask(i: int) -> Image:
    return (cells(i) > 0.3).astype(np.uint8)


@pytest.fixture
def judge(tmp_path, experiment):
    """Writes raw files, prepares and checks them: the worst finding or None; options are those of the experiment."""

    def run(config, check, x=phase, t=None, where=day, label=None, kind=None, **options):
        raw = tmp_path / "raw"
        lines = ["id,label"]
        for i in range(N):
            (raw / where(i)).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(raw / where(i) / f"x_{i:02d}.tif", x(i))
            if t:
                tifffile.imwrite(raw / where(i) / f"t_{i:02d}.tif", t(i))
            lines += [f"{where(i)}/{i:02d},{label(i)}"] if label else []
        (raw / "labels.csv").write_text("\n".join(lines))
        folder = prepare("mine", build_config({"raw": str(raw)} | config), tmp_path, Console(file=io.StringIO()), 1)
        kind = kind or next(kind for role, kind in KINDS.items() if role in config)
        ctx = experiment(kind, folder=folder, **options)
        return max(check(ctx), key=lambda finding: LEVELS.index(finding.level), default=None)

    return run


# The input holds the target ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "level"),
    [
        (glow, "ok"),
        (lambda i: 9500 - phase(i), "error"),
        (lambda i: np.minimum(phase(i), 3600), "error"),
    ],
    ids=["sound", "inverted", "clipped"],
)
def test_a_target_that_is_made_of_the_input(judge, t, level):
    finding = judge(PAIRS, pixels.leaked_target, t=t)
    assert finding.level == level, finding


def test_a_copy_of_the_target_that_is_shifted(judge):
    finding = judge(
        PAIRS, pixels.leaked_target, x=lambda i: np.stack([phase(i), np.roll(3 * glow(i), (1, -2), (0, 1))]), t=glow
    )
    assert finding.level == "error"


def test_one_channel_of_several_that_holds_the_target(judge):
    finding = judge(
        PAIRS | {"image": {"x": "{day}/x_{id}.tif"}},
        pixels.leaked_target,
        x=lambda i: np.stack([phase(i), 3 * glow(i)]),
        t=glow,
    )
    assert (finding.level, "x[1] is a copy of t" in finding.advice) == ("error", True)


@pytest.mark.parametrize("clean", [True, False])
def test_noise_and_blur_to_be_removed_give_no_alarm(judge, clean):
    def sharp(i):
        return (3000 + 2000 * cells(i)).astype(np.uint16)

    def worse(i):
        noise = np.random.default_rng(i).normal(0, 60 * clean, (SIDE, SIDE))
        return (gaussian_filter(sharp(i).astype(float), 0 if clean else 1.2) + noise).astype(np.uint16)

    assert judge(PAIRS, pixels.leaked_target, x=worse, t=sharp).level == "ok"


@pytest.mark.parametrize(
    ("t", "level"),
    [(mask, "ok"), (lambda i: (phase(i) > np.quantile(phase(i), 0.8)).astype(np.uint8), "warning")],
)
def test_a_mask_that_is_a_threshold_of_the_input(judge, t, level):
    assert judge(MASKS, pixels.leaked_target, t=t).level == level


@pytest.mark.parametrize("config", [PAIRS, MASKS], ids=["target", "mask"])
def test_the_same_file_twice_is_refused(judge, config):
    with pytest.raises(UserError, match=r"18 samples or files, such as .*channel 0 of the image is equal to the"):
        judge(config, pixels.leaked_target, x=mask, t=mask)


# Pixels that no camera wrote -----------------------------------------------------------------------------------------


def with_rows(image: Image, n: int, value: float) -> Image:
    image = image.copy()
    image[:n] = value
    return image


@pytest.mark.parametrize(
    ("x", "t", "array"),
    [
        (phase, glow, ""),
        (phase, lambda i: with_rows(glow(i), 3, 0), "target"),
        (lambda i: with_rows(phase(i), 20, 0), glow, "image"),
        (lambda i: with_rows(phase(i), 3, 0), glow, ""),
        (phase, lambda i: np.maximum(glow(i), 420) - 420, ""),  # cut off at 0 by the subtraction of a background
    ],
    ids=["sound", "rows", "black border", "thin border", "background"],
)
def test_filled_values(judge, x, t, array):
    finding = judge(PAIRS, pixels.filled, x=x, t=t)
    assert finding.level == ("warning" if array else "ok")
    assert finding.measured.startswith(array)


def test_the_remedy_for_nan_does_not_fill_in_a_foreign_value(judge):
    def broken(i):
        return with_rows(glow(i).astype(np.float32), 4, np.nan)

    with pytest.raises(UserError, match=r"`not_finite`, such as \d+") as refusal:
        judge(PAIRS, pixels.filled, t=broken)
    value = float(str(refusal.value).partition("such as ")[2].partition("`not_finite`, such as ")[2].split(",")[0])
    assert judge(PAIRS | {"not_finite": value}, pixels.filled, t=broken).level == "ok"


def blurred(mask: Image) -> Image:
    small = resize(mask.astype(float), (SIDE // 2, SIDE // 2), order=1)
    return np.rint(resize(small, mask.shape, order=1)).astype(np.uint8)


def three(i: int) -> Image:
    """Classes 0 and 2 that touch, and class 1 elsewhere."""
    classes = 2 * mask(i)
    classes[:8] = 1
    return classes


@pytest.mark.parametrize(("t", "level"), [(three, "ok"), (lambda i: blurred(three(i)), "warning")])
def test_classes_that_were_interpolated(judge, t, level):
    assert judge(MASKS, pixels.interpolated, t=t).level == level


@pytest.mark.parametrize(("side", "level"), [(1, "ok"), (4, "note")])
def test_masks_that_were_enlarged(judge, side, level):
    def enlarged(i):
        return np.kron(three(i)[::side, ::side], np.ones((side, side), np.uint8))

    finding = judge(MASKS, pixels.interpolated, t=enlarged)
    assert (finding.level, f"{side} x {side}" in finding.measured) == (level, side > 1)


@pytest.mark.parametrize(
    ("t", "level"),
    [
        (glow, "ok"),
        (lambda i: (120 * glow(i).astype(int) % 2**16).astype(np.uint16), "warning"),
        (lambda i: (255 * mask(i)).astype(np.uint8), "ok"),
        (lambda i: np.minimum(120 * glow(i).astype(int), 2**16 - 1).astype(np.uint16), "ok"),
    ],
    ids=["sound", "wrapped", "drawing", "saturated"],
)
def test_values_that_begin_at_0_again(judge, t, level):
    assert judge(PAIRS, pixels.wrapped, t=t).level == level


def test_crops_smaller_than_the_objects(judge):
    def disk(i):
        return (np.hypot(*np.mgrid[-24:24, -24:24]) < 20).astype(np.uint16)

    config = COMMON | {"instances": "{day}/t_{id}.tif"}
    finding = judge(config, inputs.crops, t=disk, kind="segmentation", data={"crop": 16})
    assert (finding.level, "35 pixels across" in finding.measured) == ("warning", True)
    assert judge(config, inputs.crops, t=disk, kind="segmentation", data={"crop": 40}).level == "ok"


def test_object_numbers_that_are_given_as_classes(judge):
    def numbered(i):
        return label(cells(i) > 0.3 + 0.1 * (i % 3)).astype(np.uint8)

    for function, is_warned in ((numbered, True), (three, False)):
        finding = judge(MASKS, lambda ctx: [ok(str(ctx.train.reader.attributes["notes"]))], t=function)
        assert ("give the pattern as `instances`" in finding.measured) == is_warned


def test_classes_counted_from_1(judge):
    config = MASKS | {"classes": {"mask": ["background", "cell", "bud"]}}
    finding = judge(config, classes, t=lambda i: mask(i) + 1)
    assert (finding.level, "counted from 1" in finding.advice) == ("error", True)


# Groups --------------------------------------------------------------------------------------------------------------


def on_friday(change: Callable[[Image], Image], function: Callable[[int], Image]) -> Callable[[int], Image]:
    return lambda i: change(function(i)) if day(i) == "friday" else function(i)


def two_channels(i: int) -> Image:
    return np.stack([phase(i), glow(i)])


def color(i: int) -> Image:
    """Channels that differ by less than the pixels of one."""
    return np.stack([phase(i), phase(i) - 400]).astype(np.uint16)


def own_target(i: int) -> Image:
    return (gaussian_filter(cells(i), 1) * 900 + np.random.default_rng(i).random((SIDE, SIDE)) * 300).astype(np.uint16)


@pytest.mark.parametrize(
    ("config", "check", "options", "level", "word"),
    [
        (MASKS, groups.inverted, {"t": on_friday(lambda m: 1 - m, mask)}, "warning", "friday"),
        (PAIRS, groups.inverted, {"x": on_friday(lambda a: 9000 - a, phase), "t": glow}, "warning", "friday"),
        (PAIRS, groups.channels, {"x": on_friday(lambda a: a[::-1], two_channels), "t": own_target}, "error", "swap"),
        (PAIRS, groups.channels, {"x": on_friday(lambda a: a[::-1], color), "t": own_target}, "warning", "swap"),
        (PAIRS, alignment, {"t": lambda i: glow(i + 99 * (day(i) == "friday"))}, "warning", "group friday has nothing"),
        (MASKS, groups.annotation, {"t": on_friday(np.zeros_like, mask)}, "warning", "friday"),
        (PAIRS, groups.brightness, {"x": on_friday(lambda a: 3 * a, phase), "t": glow}, "note", "friday"),
        (PAIRS, groups.channels, {"x": on_friday(lambda a: 3000 + a // 9, phase), "t": glow}, "note", "contrast"),
    ],
    ids=["masks", "images", "channels", "colors", "targets", "empty masks", "brightness", "contrast"],
)
def test_one_group_that_differs(judge, config, check, options, level, word):
    finding = judge(config, check, **options)
    assert (finding.level, word in finding.measured) == (level, True), finding


@pytest.mark.parametrize("check", [groups.inverted, groups.channels, groups.brightness, alignment])
def test_groups_that_are_alike_give_no_alarm(judge, check):
    assert judge(PAIRS, check, t=glow).level == judge(MASKS, check, t=mask).level == "ok"


def test_a_group_of_one_class_may_have_colors_of_its_own(judge):
    assert judge(TABLE, groups.channels, x=on_friday(lambda a: a[::-1], color), label=day).level == "ok"


@pytest.mark.parametrize(
    ("where", "label", "level"),
    [
        (day, lambda i: ["wild type", "knockout", "rescue"][i // 3 % 3], "ok"),
        (day, lambda i: ["wild type", "knockout", "rescue"][i % 3], "warning"),
        (day, lambda i: "control" if i % 3 == 2 else ["wild type", "knockout"][i // 3 % 2], "warning"),
        (lambda i: f"{['WT', 'KO'][i % 2]}{i // 6}", lambda i: ["wild type", "knockout"][i % 2], "ok"),
    ],
    ids=["mixed", "each its day", "one on one day", "folders named as classes"],
)
def test_a_class_that_is_tied_to_a_day(judge, where, label, level):
    finding = judge(TABLE, groups.tied_classes, where=where, label=label)
    assert finding.level == level


def test_equal_images_with_different_labels(judge):
    labels = ["one", "two", "three"]

    def copied(i):
        return phase(i - 1 if i == 10 else i)

    split = {"split": {"fractions": {"train": 0.95, "val": 0.05}, "seed": 3}}
    finding = judge(TABLE | split, contradictions, x=copied, label=lambda i: labels[i % 3])
    assert (finding.level, "09" in finding.advice, "10" in finding.advice) == ("error", True, True)
    finding = judge(TABLE | split, contradictions, x=copied, label=lambda i: labels[i // 2 % 3])
    assert finding.level == "error"


@pytest.mark.parametrize(("gain", "level"), [(0.5, "warning"), (0.0, "ok")])
def test_a_normalization_that_removes_the_level_of_the_target(judge, gain, level):
    finding = judge(
        PAIRS,
        inputs.level,
        x=lambda i: phase(i) + np.uint16(300 * (i % 7)),
        t=lambda i: (glow(i) * (1 + gain * (i % 7))).astype(np.uint16),
        task={"input_normalization": "image_mean_std"},
    )
    assert finding.level == level


@pytest.mark.parametrize(
    ("names", "transform", "level"),
    [
        (("left eye", "right eye"), "HorizontalFlip", "warning"),
        (("6", "9"), "RandomRotate90", "warning"),
        (("counter-clockwise", "clockwise"), "VerticalFlip", "warning"),
        (("arrow ↑", "arrow ↓"), "VerticalFlip", "warning"),
        (("left", "center"), "D4", None),
    ],
)
def test_flips_that_change_what_a_class_means(judge, names, transform, level):
    albumentations = pytest.importorskip("albumentations")
    transforms = {"transforms": [getattr(albumentations, transform)(p=1)]}
    finding = judge(TABLE, inputs.meaning, label=lambda i: names[i // 3 % 2], data=transforms)
    assert (finding and finding.level) == level
