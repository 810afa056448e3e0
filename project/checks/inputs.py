"""Checks of what the network gets and is to give: normalised, in units that come back, on each other."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from project.checks import alignment
from project.checks import thresholds as limits
from project.checks.verdicts import CROP, PIXELS, Context, Verdict, centre, spread
from project.data.statistics import NARROW, ImageStatistics
from project.errors import UserError
from project.formatting import format_number
from project.models.pretrained import input_statistics
from project.transforms.normalize import Normalize

Verdicts = Iterator[Verdict]
Seen = tuple[Tensor, Tensor, Tensor | None]  # raw values, what the network gets, and levels of the whole images
PATTERN = 64  # side of the made-up images that augmentation is tried on


# Normalisation --------------------------------------------------------------------------------------------------------


def normalisation(ctx: Context) -> Verdicts:
    """What the network gets, and what it is to give: normalised once, with the statistics of these very channels."""
    for role in ctx.pixel_roles:
        raws = [ctx.to_device(b) for b in ctx.raw["train"]]
        with torch.no_grad():
            seen = [(b[role].float(), _seen(ctx, role, b).float(), b.get("image_statistics")) for b in raws]
        if any(raw.shape != x.shape for raw, x, _ in seen):
            continue  # an answer that is no picture
        mean, std = _pooled([x for _, x, _ in seen])
        told = f"mean {format_number(mean)}, std {format_number(std)}"
        fault = _named_fault(ctx, role, seen)
        if fault:
            yield Verdict(f"{role} normalisation", told, "error", fault)
        elif (
            not np.isfinite(mean)
            or std < limits.SPREAD_TINY
            or std > 10 * limits.SPREAD_LARGE
            or abs(mean) > limits.LEVEL_FAR
        ):
            if std == 0:
                continue  # constant, which is said elsewhere
            yield Verdict(f"{role} normalisation", told, "error", "not of the order of 1; see how the task normalises")
        elif std < limits.SPREAD_SMALL or std > limits.SPREAD_LARGE:
            yield Verdict(
                f"{role} normalisation",
                told,
                "warning",
                f"few pixels set the scale; take `{'input' if role == 'image' else 'target'}_normalization: mean_std`",
            )
        else:
            yield Verdict(f"{role} normalisation", told)
    levels = ctx.train.reader.image_statistics.get("image")
    if levels is not None and ctx.task.normalize_input.method == "image_percentile":
        low, high, cut = (levels[..., ImageStatistics._fields.index(name)] for name in ("low", "high", "cut"))
        if n := int(((cut < NARROW) & (low < high)).any(1).sum()):
            yield Verdict(
                "range of each image",
                f"the 1st and 99th percentile are equal in {n} of {len(levels)} images",
                "warning",
                "most pixels have one value there; the 0.1 and 99.9 percentiles or the extremes are used instead",
            )


def _seen(ctx: Context, role: str, batch: dict[str, Tensor]) -> Tensor:
    return ctx.task.network_input(batch) if role == "image" else ctx.task.make_target(batch)


def _pooled(arrays: list[Tensor]) -> tuple[float, float]:
    flat = torch.cat([a.flatten().double().cpu() for a in arrays])
    return float(flat.mean()), float(flat.std(correction=0))


def _named_fault(ctx: Context, role: str, seen: list[Seen]) -> str | None:
    """What was done in place of the right thing, where it can be told exactly."""
    own: Any = ctx.task.normalize_input if role == "image" else getattr(ctx.task, "normalize_target", None)
    statistics = ctx.data.statistics
    method = own.method if isinstance(own, Normalize) else "mean_std"
    right = _normalizer(ctx, statistics[role], method)
    if right is None or _alike(seen, right):
        return None
    other = next((r for r in PIXELS if r != role and r in statistics), None)
    wrong = other and len(statistics[other]) == len(statistics[role]) and _normalizer(ctx, statistics[other], method)
    top = np.iinfo(ctx.train.reader.dtypes[role]).max if ctx.train.reader.dtypes[role].kind == "u" else 1
    used = f"{format_number(min(c['min'] for c in statistics[role]))} to {format_number(max(c['max'] for c in statistics[role]))}"  # noqa: E501
    if _alike(seen, lambda raw, levels: right(right(raw, levels), levels)):
        return "normalised twice; once is enough"
    if wrong and _alike(seen, wrong):
        return f"normalised with the statistics of the {other}; take those of the {role}"
    if top > 1 and any(_alike(seen, lambda raw, _, d=d: raw / d) for d in (top, top + 1)):
        return f"divided by {top}, the largest value of the dtype; what is used is {used}. Take the training statistics"
    if _pooled([x for _, x, _ in seen])[1] > limits.SPREAD_LARGE and _alike(seen, lambda raw, _: raw):
        return f"not normalised: values from {used}; take the training statistics"
    if _is_own(ctx, role) and isinstance(own, Normalize):
        return f"not what {method} of the training statistics gives; the task has statistics of other data"
    return None


def _normalizer(ctx: Context, statistics: list[dict[str, Any]], method: Any) -> Normalize | None:
    try:
        encoder = input_statistics(ctx.task.net) if method == "encoder" else None
        return Normalize(statistics, method, encoder).to(ctx.device)
    except (UserError, KeyError, TypeError):  # for this method the statistics or the encoder lack something
        return None


def _is_own(ctx: Context, role: str) -> bool:
    """Whether the normalisation is this project's; another is only judged by what comes out."""
    kind = type(ctx.task)
    if role == "image":
        return kind.normalize.__module__ == "project.tasks.base" and "normalize" not in vars(ctx.task)
    return hasattr(ctx.task, "normalize_target") and kind.make_target.__module__.startswith("project.tasks.")


def _alike(seen: list[Seen], function: Any) -> bool:
    with torch.no_grad():
        for raw, x, levels in seen[:4]:
            expected = function(raw, levels)
            if expected.shape != x.shape:
                return False
            finite = expected.isfinite() & x.isfinite()
            scale = expected[finite].abs().max() if finite.any() else torch.tensor(1.0)
            if not torch.allclose(expected[finite], x[finite], rtol=limits.SAME, atol=limits.SAME * float(scale)):
                return False
    return True


def units(ctx: Context) -> Verdicts:
    """Whether a perfect answer of the network comes back as the target, in its own units."""
    if ctx.task.target_kind != "image":
        return
    worst, spread_ = 0.0, 1e-12
    with torch.no_grad():
        for b in (ctx.to_device(b) for b in ctx.raw["train"][:4]):
            raw, encoded = b["target"].float(), ctx.task.make_target(b)
            if encoded.shape != raw.shape:
                return
            back = ctx.task.decode_output(encoded).float()
            worst = max(worst, float((back - raw).nan_to_num().abs().max()))
            spread_ = max(spread_, float(raw.nan_to_num().abs().max()), float(raw.nan_to_num().std()))
    if worst > limits.SAME * spread_:
        yield Verdict(
            "units of predictions",
            f"off by {format_number(worst)}",
            "error",
            "decode_output(make_target(batch)) is not the target; let both use one normalisation",
        )
    else:
        yield Verdict("units of predictions", "those of the target")


# Alignment ------------------------------------------------------------------------------------------------------------


def aligned(ctx: Context) -> Verdicts:
    """Whether input and target lie on each other, in the file and in the batches."""
    role = next((r for r in ("target", "mask", "instances") if r in ctx.train.roles), None)
    if role is None:
        return
    reader = ctx.train.reader
    n = len(reader)
    if any(a[-2:] != b[-2:] for a, b in zip(reader.shapes["image"], reader.shapes[role], strict=True)):
        yield Verdict("alignment", "image and target of different size", "error", "prepare the dataset again")
        return
    # Neighbours in the file: a list that slipped by one is seen among them.
    most = limits.COMPARED[ctx.kind]
    chosen = list(range(n)) if n <= most else sorted({*range(most // 2), *spread(n, most // 2)})
    whole = [[_whole(ctx, i, each) for i in chosen] for each in ("image", role)]
    small, fine = ([[alignment.shrunk(m, n) for m in each] for each in whole] for n in (alignment.MAP, alignment.FINE))
    shapes = [reader.shapes["image"][i][-2:] for i in chosen]
    found = alignment.find_turn(fine[0], fine[1], all(h == w for h, w in shapes))
    if found is None:
        found = alignment.find_other(small[0], small[1])
    pieces = _pieces(ctx, role) or small
    if found is None and pieces is not small:
        found = alignment.find_shift(pieces[0], pieces[1])
    related = alignment.relation(pieces[0], pieces[1])
    best = int(np.abs(related.mean(1)).argmax())
    strength = float(related[best].mean())
    if found:
        yield Verdict(
            "alignment",
            f"{role} {found.what}",
            "error",
            f"structures correlate by {found.correlation:.2f} then, and by {found.own:.2f} as they are; see how the "
            "files are paired",
        )
        return
    if told := _lost_in_batches(ctx, role):
        yield Verdict(
            "alignment",
            told,
            "error",
            f"cropping or augmentation moves input and {role} apart; apply it to both alike",
        )
        return
    yield Verdict("alignment", f"input and {role} correlate by {abs(strength):.2f} in place")


def _whole(ctx: Context, index: int, role: str) -> np.ndarray:
    """Maps of a whole image (the middle of a very large one), of a size that costs little."""
    array = ctx.read("train", role, index, 1024)
    step = -(-max(array.shape[-2:]) // 192)
    if role in ("mask", "instances"):
        return alignment.maps(array[..., ::step, ::step], classes=True)
    height, width = (size // step for size in array.shape[-2:])
    cells = array[..., : height * step, : width * step].reshape(len(array), height, step, width, step)
    return alignment.maps(cells.mean((2, 4), dtype=np.float32))


def _pieces(ctx: Context, role: str, most: int = 32) -> list[list[np.ndarray]] | None:
    """Maps of square pieces of one size, in pixels of the file, from all over the split; None where images are tiny."""
    reader = ctx.train.reader
    shapes = [shape[-2:] for shape in reader.shapes["image"]]
    side = min(min(map(min, shapes)), 160)
    if len(shapes) < 4 and side < 160:  # a few small images: smaller pieces, so that there are several
        side //= 2
    if side < 24:
        return None
    chosen = spread(len(shapes), most)
    windows = []
    for index in chosen:
        rows, columns = (range(0, size - side + 1, side) for size in shapes[index])
        places = list(itertools.product(rows, columns))
        windows += [(index, places[i]) for i in spread(len(places), -(-most // len(chosen)))]
    found: list[list[np.ndarray]] = [[], []]
    for index, (y, x) in (windows[i] for i in spread(len(windows), most)):
        for maps, each in zip(found, ("image", role), strict=True):
            array = reader.read(each, index, (y, y + side, x, x + side))
            maps.append(alignment.maps(array, classes=each in ("mask", "instances")))
    return found


def _lost_in_batches(ctx: Context, role: str) -> str | None:
    """Whether crops in augmented batches are less related than crops of that size in the file."""
    reader, rng = ctx.train.reader, np.random.default_rng(0)
    n = limits.COMPARED["brief"]
    in_file: list[list[np.ndarray]] = [[], []]
    for index in rng.permutation(np.arange(n) % len(reader)).tolist():
        height, width = reader.shapes["image"][index][-2:]
        side = min(ctx.train.crop or CROP, height, width, CROP)
        y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        for arrays, each in zip(in_file, ("image", role), strict=True):
            arrays.append(reader.read(each, index, (y, y + side, x, x + side)))
    in_batches: list[list[np.ndarray]] = [[], []]
    torch.manual_seed(0)
    for epoch in range(-(-n // min(len(ctx.train), n))):
        with torch.no_grad():
            batch = ctx.task.device_augmentation(centre(ctx.batch(min(n, len(ctx.train)), epoch)))
        for arrays, each in zip(in_batches, ("image", role), strict=True):
            arrays += list(batch[each].cpu().numpy())
    if min(in_file[0][0].shape[-2:]) < 24:
        return None
    classes = role in ("mask", "instances")
    before, after = (
        alignment.relation([alignment.maps(x) for x in first], [alignment.maps(t, classes) for t in second])
        for first, second in (in_file, in_batches)
    )
    best = int(np.abs(before.mean(1)).argmax())
    before, after = (np.sign(before[best].mean()) * each[best] for each in (before, after))
    error = np.sqrt(before.var() / len(before) + after.var() / len(after))
    lost = before.mean() - after.mean()
    if before.mean() < limits.RELATED or after.mean() > limits.LOST * before.mean() or lost < limits.SIGMA * error:
        return None
    return f"{before.mean():.2f} in the file, {after.mean():.2f} in batches"
