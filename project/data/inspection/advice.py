"""Suggested settings of an experiment on a dataset, with the reasons.

None of them is set automatically: a person decides, and writes the reason into the experiment.
"""

from typing import Any

from project.data.crops import largest_crop
from project.data.inspection.measure import ImageMeasures, training_images
from project.data.normalization import (
    HEAVY_TAIL,
    Levels,
    choose_input_normalization,
    choose_target_normalization,
)
from project.formatting import format_percent

# The thresholds decide what is suggested, never what is done to the data.
IMBALANCE = 3.0  # the commonest label to the rarest: accuracy is then mostly that of the commonest
SPARSE = 0.1  # share of foreground below which random crops are mostly background
LARGE = 512  # side in pixels: above it, whole images fill memory and vary little within a batch
CROP = 256
DIVISOR = 32  # factor by which encoders reduce an image; see `size_divisor` in project.tasks.base

Report = dict[str, Any]
Suggestion = tuple[str, str, str]


def suggest_settings(report: Report, images: list[ImageMeasures], levels: dict[str, Levels]) -> list[dict[str, str]]:
    """Settings of an experiment that follow from the data.

    Args:
        report: Its parts "channels", "classes", "background", "multi_label".
        images: Measures of all images.
        levels: "image" and "target" -> spread of their values.

    Returns:
        "what" it is about, what to "set", "why".
    """
    suggestions = [
        *_normalization(levels),
        *_pretrained(report),
        *_crop(report, images),
        *_mask(report, images),
        *_label(report),
    ]
    return [{"what": what, "set": setting, "why": why} for what, setting, why in suggestions]


def _normalization(levels: dict[str, Levels]) -> list[Suggestion]:
    method, why = choose_input_normalization(levels["image"])
    suggestions = [("input normalization", f"input_normalization: {method}", f"image: {why}")]
    if levels["image"].must_stay:
        explained = format_percent(levels["image"].informs)
        why = f"image: its brightness explains {explained} of the variance of what is predicted."
        suggestions.append(("brightness augmentation", "intensity_augmentation: null", why))
    if target := levels.get("target"):
        method, why = choose_target_normalization(target)
        why = f"target: {why} A target is never normalized image by image: that cannot be undone."
        suggestions.append(("target normalization", f"target_normalization: {method}", why))
        if target.tail > HEAVY_TAIL and method != "asinh":
            why = "target: the few brightest pixels would decide the squared error."
            suggestions.append(("loss of the target", "torch.nn.SmoothL1Loss, or unet_l1_ssim", why))
    return suggestions


def _pretrained(report: Report) -> list[Suggestion]:
    dtypes = [entry["dtype"] for entry in report["channels"] if entry["role"] == "image"]
    if dtypes != ["uint8"] * 3:
        return []
    why = (
        "image: 8-bit color, as the photographs that these weights were trained on; they expect exactly that scale. On "
        "few images such weights help more than any other setting. This replaces the normalization above."
    )
    return [("pretrained encoder", "encoder_weights: imagenet with input_normalization: encoder", why)]


def _crop(report: Report, images: list[ImageMeasures]) -> list[Suggestion]:
    sizes = [image.size for image in training_images(images)]
    shortest, differ = min(map(min, sizes)), len(set(sizes)) > 1
    if not differ and max(map(max, sizes)) <= LARGE:
        return []
    crop = min(CROP, largest_crop(sizes, DIVISOR))
    why = f"the training images are {sizes[0][0]} x {sizes[0][1]} pixels; whole images fill memory and vary little "
    why += "within a batch"
    if differ:
        why = f"the training images have {len(set(sizes))} sizes, the shortest side is {shortest} pixels; "
        why += "a batch needs one size"
    why += ". The crop fits into all of them; an epoch takes as many of each image as cover it."
    if all(entry["role"] == "image" for entry in report["channels"]) and "mask" not in report["classes"]:
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
    share, which = shares[rarest], rarest
    if background is not None:
        share, which = 1 - shares.get(background, 0), f"of another class than {background}"
    if share < SPARSE and max(max(image.size) for image in images) > CROP:
        why = (
            f"mask: {format_percent(share)} of the training pixels are {which}: half of the crops are then centered on "
            "such a pixel, each class equally often."
        )
        suggestions.append(("sampling", "data.foreground_crops: 0.5", why))
    return suggestions


def _label(report: Report) -> list[Suggestion]:
    by_class = _of_training(report["classes"].get("label"))
    counts = {name: numbers["count"] for name, numbers in by_class.items() if numbers["count"]}
    if len(counts) < 2:
        return []
    rarest, commonest = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    if counts[commonest] < IMBALANCE * counts[rarest]:
        return []
    setting, score = "data.balanced: true, or CrossEntropy with class_weights: balanced; not both", "balanced accuracy"
    if report["multi_label"]:
        setting, score = "CrossEntropy with class_weights: balanced", "average precision"
    if counts[rarest] == 1:
        setting = "more images of it, or leave the class out"
    why = (
        f"label: {counts[commonest]} training images of {commonest}, {counts[rarest]} of {rarest}. Judge by {score}, "
        "and look at the scores of each class."
    )
    return [("rare classes", setting, why)]


def _of_training(by_split: dict[str, Any] | None) -> dict[str, Any]:
    """What belongs to the training split, or to the first one where there is none."""
    if not by_split:
        return {}
    result: dict[str, Any] = by_split.get("train") or next(iter(by_split.values()))
    return result
