"""What to set in an experiment on a dataset, and why: the settings of project.tasks and project.data that depend on it.

Nothing is set automatically: a person decides, and writes the reason into the experiment.
"""

from typing import Any

from project.data.inspection.images import is_mixed
from project.data.inspection.rows import Row
from project.formatting import count_of, first_few, format_channels, format_number, format_percent

# The thresholds decide what is suggested, never what is done to the data.
HEAVY_TAIL = 3.0  # times as far above the median as the 99.9th percentile: the maximum is the matter of few pixels
FLAT = 0.01  # share of images whose 1st and 99th percentile are equal: percentiles of the image then give no scale
IMBALANCE = 3.0  # the commonest label to the rarest: accuracy is then mostly that of the commonest
SPARSE = 0.1  # share of foreground below which random crops are mostly background
LARGE = 512  # side in pixels: above it, whole images fill memory and vary little within a batch
CROP = 256
HALVINGS = 32  # what encoders halve an image down by; see `size_divisor` in project.tasks.base
MOST_CROPS = 64
EIGHT_BIT = 255


def suggestions(report: dict[str, Any], rows: list[Row], ignore_index: int | None) -> list[dict[str, str]]:
    """Settings of an experiment that follow from the data.

    Args:
        report: What is known so far: "channels", "drift", "groups", "classes", "background", "sizes", "images".
        rows: Measures of all images.
        ignore_index: As in the data configuration.

    Returns:
        "what" it is about, what to "set", "why".
    """
    roles = {entry["role"] for entry in report["channels"]}
    found = [_input(report, rows)]
    if "target" in roles:
        found += _target(report)
    found += _pretrained(report) + _crop(report, rows) + _mask(report, rows) + _label(report, rows)
    found += _ignore(report, rows, ignore_index)
    return [{"what": what, "set": setting, "why": why} for what, setting, why in found]


Suggestion = tuple[str, str, str]


def _input(report: dict[str, Any], rows: list[Row]) -> Suggestion:
    what, entries = "input normalisation", _of_role(report, "image")
    name = format_channels("image", [e["channel"] for e in entries])
    contrast = [row.values["image", e["channel"]]["contrast"] for row in rows for e in entries]
    flat = sum(value == 0 for value in contrast) / len(contrast)
    by_image = "image_mean_std" if flat > FLAT else "image_percentile"
    if reasons := _level_changes(report, rows, "image"):
        why = (
            f"brightness differs: {'; '.join(reasons)}. Each image scaled by itself looks alike whatever the lamp. Not "
            "if brightness itself is the signal: then mean_std."
        )
        if by_image == "image_mean_std":
            why += f" Not image_percentile: in {format_percent(flat)} of the images 98 % of the pixels are equal."
        return what, f"input_normalization: {by_image}", why
    if tails := _tails(entries):
        return what, "input_normalization: percentile", f"{_tail_text('image', tails)}. {_TAIL_WHY}"
    return (
        what,
        "input_normalization: mean_std",
        f"{name}: no group or split is of another brightness, and no few pixels set the range: one offset and one "
        "scale for all images keep what brightness says.",
    )


def _target(report: dict[str, Any]) -> list[Suggestion]:
    what, entries = "target normalisation", _of_role(report, "target")
    name = format_channels("target", [e["channel"] for e in entries])
    kept = (
        "A target is never scaled image by image: its values are what is predicted, and such a scale cannot be undone."
    )
    setting, why = "target_normalization: mean_std", f"{name}: one scale for all images keeps the units. {kept}"
    if tails := _tails(entries):
        setting = "target_normalization: percentile"
        why = f"{_tail_text('target', tails)}. {_TAIL_WHY} {kept}"
    found = [(what, setting, why)]
    if drift := _drift(report, "target"):
        found.append(
            (
                "scale of the target",
                "one scale for all images, before preparing",
                f"{name}: {'; '.join(drift)}. The bright images set the scale of the squared error, and the dim ones "
                "drown in it, whatever the normalisation. Divide by exposure and gain, or train on each kind alone.",
            )
        )
    if tails:
        found.append(
            (
                "loss of the target",
                "torch.nn.SmoothL1Loss, or unet_l1_ssim",
                f"{format_channels('target', [e['channel'] for e in tails])}: squared error would be decided by the few "  # noqa: E501
                "brightest pixels.",
            )
        )
    if binary := [e["channel"] for e in entries if (e["n_distinct"] or 3) <= 2]:
        found.append(
            (
                "task",
                "mask: in place of target: in the data configuration",
                f"{format_channels('target', binary)} has two values only: this is a picture of classes. Save it as 0 and 1.",  # noqa: E501
            )
        )
    return found


_TAIL_WHY = "The 1st and 99th percentile as scale do not depend on these few pixels; nothing is cut off."


def _tails(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Channels whose maximum in training lies far above the 99.9th percentile, where percentiles give a scale."""
    found = []
    for entry in entries:
        summary = entry["splits"].get("train") or next(iter(entry["splits"].values()))
        cuts = summary.get("percentiles")
        if not cuts or cuts["99"] <= cuts["1"]:
            return []  # one constant channel, and percentiles are no scale for the role
        if summary["max"] - cuts["50"] > HEAVY_TAIL * (cuts["99.9"] - cuts["50"]):
            found.append(entry)
    return found


def _tail_text(role: str, entries: list[dict[str, Any]]) -> str:
    told = []
    for entry in entries:
        summary = entry["splits"].get("train") or next(iter(entry["splits"].values()))
        told.append(
            f"{entry['channel']} {format_number(summary['max'])} above {format_number(summary['percentiles']['99.9'])}"
        )
    return f"{format_channels(role, [e['channel'] for e in entries])}: maximum far above the 99.9th percentile ({first_few(told)})"  # noqa: E501


def _drift(report: dict[str, Any], role: str) -> list[str]:
    """How groups and splits differ, the first channel that does."""
    found = []
    groups: dict[str, str] = {}
    for group, about in report["groups"].items():
        for channel, part in about["channels"].items():
            if channel.startswith(f"{role}/") and part["difference"]:
                groups.setdefault(group, f"group {group} {part['difference']} ({channel.partition('/')[2]})")
    found += list(groups.values())[:3] + ([f"{len(groups) - 3} more groups"] if len(groups) > 3 else [])
    splits: dict[str, str] = {}
    for channel, parts in report["drift"].items():
        for split, part in parts.items():
            if channel.startswith(f"{role}/") and part["difference"]:
                splits.setdefault(split, f"{split} {part['difference']} than train ({channel.partition('/')[2]})")
    return found + list(splits.values())


def _level_changes(report: dict[str, Any], rows: list[Row], role: str) -> list[str]:
    found, by_channel = _drift(report, role), report["images"]["unusual"]
    places = {tuple(image) for name, each in by_channel.items() if name.startswith(f"{role}/") for image in each}
    unusual = [row for row in rows if (row.split, row.id) in places]
    if is_mixed(unusual, rows):
        found.append(f"{count_of(len(unusual), len(rows))} a mean far from the usual one")
    return found


def _pretrained(report: dict[str, Any]) -> list[Suggestion]:
    entries = _of_role(report, "image")
    if len(entries) != 3 or any(entry["dtype"] != "uint8" for entry in entries):
        return []
    return [
        (
            "pretrained encoder",
            "encoder_weights: imagenet with input_normalization: encoder",
            "image: 8-bit colour, as the photographs that these weights were trained on; they expect exactly that "
            "scale. On few images such weights help more than any other setting; this scaling then takes the place "
            "of the one above.",
        )
    ]


def _crop(report: dict[str, Any], rows: list[Row]) -> list[Suggestion]:
    own = [row.size for row in rows if row.split == "train"] or [row.size for row in rows]
    least, areas = min(min(size) for size in own), sorted(size[0] * size[1] for size in own)
    differ, dense = len(set(own)) > 1, _of_role(report, "target") or "mask" in report["classes"]
    largest = max(max(size) for size in own)
    if not differ and largest <= LARGE:
        return []
    crop = min(CROP, least // HALVINGS * HALVINGS or least)
    n_crops = min(max(round(areas[len(areas) // 2] / crop**2), 1), MOST_CROPS)
    sizes = f"the training images have {len(set(own))} sizes" if differ else f"the training images are {own[0][0]} x "
    sizes += "" if differ else f"{own[0][1]} pixels"
    why = f"{sizes}, the shortest side is {least} pixels; " if differ else f"{sizes}; "
    why += "a batch needs one size" if differ else "whole images fill memory and vary little within a batch"
    why += f". The crop fits into all of them; {n_crops} of them cover about the area of a typical image."
    if not dense:
        why += " A crop may miss what the label is about: bringing all images to one small size is the other way."
    return [("crop", f"data.crop: {crop}, data.crops_per_image: {n_crops}", why)]


def _mask(report: dict[str, Any], rows: list[Row]) -> list[Suggestion]:
    by_class = _of_training(report["classes"].get("mask"))
    shares = {name: about["share"] for name, about in by_class.items() if about["share"]}
    if len(shares) < 2:
        return []
    found = []
    rarest, background = min(shares, key=lambda name: shares[name]), report["background"]
    share, what = shares[rarest], f"are {rarest}"
    if background is not None:
        share, what = 1 - shares.get(background, 0), f"are of another class than {background}"
    if shares[rarest] < SPARSE:
        found.append(
            (
                "loss of the classes",
                "WeightedSum of DiceLoss and CrossEntropy (as unet_dice), or CrossEntropy with class_weights: balanced",
                f"mask: {rarest} is {format_percent(shares[rarest])} of the training pixels; with plain cross entropy, "
                "predicting the other classes everywhere is nearly right.",
            )
        )
    if share < SPARSE and max(max(row.size) for row in rows) > CROP:
        found.append(
            (
                "sampling",
                "data.foreground_crops: 0.5",
                f"mask: {format_percent(share)} of the training pixels {what}: half of the crops are then centred on a pixel "  # noqa: E501
                f"of {'any' if background is None else 'such a'} class, each class equally often.",
            )
        )
    return found


def _label(report: dict[str, Any], rows: list[Row]) -> list[Suggestion]:
    counts = {name: a["count"] for name, a in _of_training(report["classes"].get("label")).items() if a["count"]}
    if len(counts) < 2:
        return []
    rarest, commonest = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    if counts[commonest] < IMBALANCE * counts[rarest]:
        return []
    several = any(isinstance(row.label, tuple) for row in rows)
    setting = (
        "more images of it, or leave the class out"
        if counts[rarest] == 1
        else "BinaryCrossEntropy with class_weights: balanced"
        if several
        else "data.balanced: true, or CrossEntropy with class_weights: balanced; not both"
    )
    why = (
        f"label: {counts[commonest]} training images of {commonest}, {counts[rarest]} of {rarest}. Judge by "
        f"{'average precision' if several else 'balanced accuracy'}, and look at the scores of each class."
    )
    return [("rare classes", setting, why)]


def _ignore(report: dict[str, Any], rows: list[Row], ignore_index: int | None) -> list[Suggestion]:
    mask = _of_training(report["classes"].get("mask"))
    if ignore_index is not None:
        known = [row.annotated for row in rows if row.annotated is not None]
        left_out = 1 - sum(known) / len(known) if known else 0
        if not left_out:
            return []
        return [
            (
                "pixels that are not annotated",
                f"ignore_index: {ignore_index} (set)",
                f"mask: {format_percent(left_out)} of an image on average is not annotated, and counts neither in the loss "  # noqa: E501
                "nor in the scores: take a loss that can leave it out, such as CrossEntropy.",
            )
        ]
    used = {name for name, about in mask.items() if about["count"]}
    if str(EIGHT_BIT) in used and len(used) > 1 and str(EIGHT_BIT - 1) not in used:
        return [
            (
                "pixels that are not annotated",
                f"ignore_index: {EIGHT_BIT} in the data configuration",
                f"mask: the value {EIGHT_BIT} stands far from the other classes; if it means not annotated, it must "
                "not be learnt as a class.",
            )
        ]
    return []


def _of_role(report: dict[str, Any], role: str) -> list[dict[str, Any]]:
    return [entry for entry in report["channels"] if entry["role"] == role]


def _of_training(by_split: dict[str, Any] | None) -> dict[str, Any]:
    """Class -> count and share in the training split, or in the first there is."""
    if not by_split:
        return {}
    found: dict[str, Any] = by_split.get("train") or next(iter(by_split.values()))
    return found
