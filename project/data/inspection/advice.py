"""Suggested settings of an experiment on a dataset, with the reasons.

None of them is set automatically: a person decides, and writes the reason into the experiment.
"""

from typing import Any

from project.data.crops import largest_crop
from project.data.inspection.measure import ImageMeasures
from project.data.normalization import (
    HEAVY_TAIL,
    Levels,
    choose_input_normalization,
    choose_target_normalization,
)
from project.formatting import format_channels, format_percent

# The thresholds decide what is suggested, never what is done to the data.
IMBALANCE = 3.0  # the commonest label to the rarest: accuracy is then mostly that of the commonest
SPARSE = 0.1  # share of foreground below which random crops are mostly background
LARGE = 512  # side in pixels: above it, whole images fill memory and vary little within a batch
CROP = 256
DIVISOR = 32  # factor by which encoders reduce an image; see `size_divisor` in project.tasks.base
EIGHT_BIT = 255
BINARY = 2  # distinct values

Report = dict[str, Any]
Suggestion = tuple[str, str, str]


def suggest_settings(
    report: Report, images: list[ImageMeasures], levels: dict[str, Levels], ignore_index: int | None
) -> list[dict[str, str]]:
    """Settings of an experiment that follow from the data.

    Args:
        report: Its parts "channels", "classes", "background", "sizes".
        images: Measures of all images.
        levels: "image" and "target" -> spread of their values.
        ignore_index: As in the data configuration.

    Returns:
        "what" it is about, what to "set", "why".
    """
    suggestions = [
        *_input(levels["image"]),
        *(_target(report, levels["target"]) if "target" in levels else []),
        *_pretrained(report),
        *_crop(report, images),
        *_mask(report, images),
        *_label(report, images),
        *_ignore_index(report, images, ignore_index),
    ]
    return [{"what": what, "set": setting, "why": why} for what, setting, why in suggestions]


def _input(levels: Levels) -> list[Suggestion]:
    method, reason = choose_input_normalization(levels)
    suggestions = [("input normalization", f"input_normalization: {method}", f"image: {reason}")]
    if levels.must_stay:
        why = f"image: its brightness explains {format_percent(levels.informs)} of the variance of what is predicted."
        suggestions.append(("brightness augmentation", "intensity_augmentation: null", why))
    return suggestions


def _target(report: Report, levels: Levels) -> list[Suggestion]:
    entries = _of_role(report, "target")
    method, why = choose_target_normalization(levels)
    why = f"target: {why} A target is never normalized image by image: that cannot be undone."
    suggestions = [("target normalization", f"target_normalization: {method}", why)]
    if levels.tail > HEAVY_TAIL and method != "asinh":
        why = "target: the few brightest pixels would decide the squared error."
        suggestions.append(("loss of the target", "torch.nn.SmoothL1Loss, or unet_l1_ssim", why))
    if binary := [entry for entry in entries if (entry["n_distinct"] or BINARY + 1) <= BINARY]:
        why = f"{_name('target', binary)} has only two values: it is an image of classes. Save it as 0 and 1."
        suggestions.append(("task", "mask: instead of target: in the data configuration", why))
    return suggestions


def _pretrained(report: Report) -> list[Suggestion]:
    entries = _of_role(report, "image")
    if len(entries) != 3 or any(entry["dtype"] != "uint8" for entry in entries):
        return []
    why = (
        "image: 8-bit color, as the photographs that these weights were trained on; they expect exactly that scale. On "
        "few images such weights help more than any other setting. This replaces the normalization above."
    )
    return [("pretrained encoder", "encoder_weights: imagenet with input_normalization: encoder", why)]


def _crop(report: Report, images: list[ImageMeasures]) -> list[Suggestion]:
    sizes = [i.size for i in images if i.split == "train"] or [i.size for i in images]
    shortest, differ = min(map(min, sizes)), len(set(sizes)) > 1
    if not differ and max(map(max, sizes)) <= LARGE:
        return []
    crop = min(CROP, largest_crop(sizes, DIVISOR))
    if differ:
        why = f"the training images have {len(set(sizes))} sizes, the shortest side is {shortest} pixels; "
        why += "a batch needs one size"
    else:
        why = f"the training images are {sizes[0][0]} x {sizes[0][1]} pixels; "
        why += "whole images fill memory and vary little within a batch"
    why += ". The crop fits into all of them; an epoch takes as many of each image as cover it."
    if not _of_role(report, "target") and "mask" not in report["classes"]:
        why += " A crop may miss what the label is about: alternatively, bring all images to one small size."
    return [("crop", f"data.crop: {crop}", why)]


def _mask(report: Report, images: list[ImageMeasures]) -> list[Suggestion]:
    by_class = _of_training(report["classes"].get("mask"))
    shares = {name: numbers["share"] for name, numbers in by_class.items() if numbers["share"]}
    if len(shares) < 2:
        return []
    suggestions = []
    rarest, background = min(shares, key=lambda name: shares[name]), report["background"]
    if shares[rarest] < SPARSE:
        setting = (
            "WeightedSum of DiceLoss and CrossEntropy (as unet_dice), or CrossEntropy with class_weights: balanced"
        )
        why = (
            f"mask: {rarest} is {format_percent(shares[rarest])} of the training pixels; with plain cross entropy, "
            "predicting the other classes everywhere is nearly right."
        )
        suggestions.append(("loss of the classes", setting, why))
    share, which, classes = shares[rarest], f"are {rarest}", "any class"
    if background is not None:
        share, which = 1 - shares.get(background, 0), f"are of another class than {background}"
        classes = "such a class"
    if share < SPARSE and max(max(image.size) for image in images) > CROP:
        why = (
            f"mask: {format_percent(share)} of the training pixels {which}: half of the crops are then centered on a "
            f"pixel of {classes}, each class equally often."
        )
        suggestions.append(("sampling", "data.foreground_crops: 0.5", why))
    return suggestions


def _label(report: Report, images: list[ImageMeasures]) -> list[Suggestion]:
    by_class = _of_training(report["classes"].get("label"))
    counts = {name: numbers["count"] for name, numbers in by_class.items() if numbers["count"]}
    if len(counts) < 2:
        return []
    rarest, commonest = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    if counts[commonest] < IMBALANCE * counts[rarest]:
        return []
    multi_label = any(isinstance(image.label, tuple) for image in images)
    setting = "data.balanced: true, or CrossEntropy with class_weights: balanced; not both"
    if counts[rarest] == 1:
        setting = "more images of it, or leave the class out"
    elif multi_label:
        setting = "BinaryCrossEntropy with class_weights: balanced"
    why = (
        f"label: {counts[commonest]} training images of {commonest}, {counts[rarest]} of {rarest}. Judge by "
        f"{'average precision' if multi_label else 'balanced accuracy'}, and look at the scores of each class."
    )
    return [("rare classes", setting, why)]


def _ignore_index(report: Report, images: list[ImageMeasures], ignore_index: int | None) -> list[Suggestion]:
    what = "pixels that are not annotated"
    if ignore_index is not None:
        annotated = [image.annotated for image in images if image.annotated is not None]
        share = 1 - sum(annotated) / len(annotated) if annotated else 0
        why = (
            f"mask: {format_percent(share)} of an image on average is not annotated, and counts neither in the loss "
            "nor in the scores: take a loss that can leave it out, such as CrossEntropy."
        )
        return [(what, f"ignore_index: {ignore_index} (set)", why)] if share else []
    used = {name for name, numbers in _of_training(report["classes"].get("mask")).items() if numbers["count"]}
    if str(EIGHT_BIT) in used and len(used) > 1 and str(EIGHT_BIT - 1) not in used:
        why = (
            f"mask: the value {EIGHT_BIT} is far from the other classes; if it means not annotated, it must not be "
            "learned as a class."
        )
        return [(what, f"ignore_index: {EIGHT_BIT} in the data configuration", why)]
    return []


def _of_role(report: Report, role: str) -> list[dict[str, Any]]:
    return [entry for entry in report["channels"] if entry["role"] == role]


def _name(role: str, entries: list[dict[str, Any]]) -> str:
    return format_channels(role, [entry["channel"] for entry in entries])


def _of_training(by_split: dict[str, Any] | None) -> dict[str, Any]:
    """What belongs to the training split, or to the first one where there is none."""
    if not by_split:
        return {}
    result: dict[str, Any] = by_split.get("train") or next(iter(by_split.values()))
    return result
