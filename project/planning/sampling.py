"""Decisions on the data section of a plan: crops, batches, which samples are taken how often, augmentation.

Each function takes a `Draft`, and gives a value and its reason; None leaves the key out.
"""

import math

from project.data.normalization import Choice
from project.formatting import format_percent
from project.planning.appearance import FEWEST
from project.planning.draft import Draft, power_of_two
from project.planning.learning import IMBALANCE

# A crop shows a structure and what is around it. Larger ones leave room for fewer different images in a batch.
CROP_STRUCTURES, SMALLEST_CROP, LARGEST_CROP = 2.5, 128, 512
PIXELS, SMALLEST_PIXELS = 16 * 128**2, 4 * 128**2  # of a batch of crops
ENOUGH_STEPS = 600  # smaller batches where fewer steps fit into the time
EPOCHS = 20  # in a training: as often can it be validated
SPARSE, RARE = 0.1, 0.02  # share of foreground, or of a class, below which random crops hardly show it


def fold(draft: Draft) -> Choice | None:
    """The first fold, where the data has folds."""
    n = draft.data.n_folds
    return Choice(0, f"one of {n}, to validate on; `make train FOLD=1` takes another") if n else None


def crop(draft: Draft) -> Choice:
    """Crops that show some structures; whole images where they are not much larger."""
    data, side = draft.data, math.ceil(CROP_STRUCTURES * draft.structure / 32) * 32
    side = min(max(side, SMALLEST_CROP), LARGEST_CROP)
    sees = f"structures are {draft.structure:.0f} pixels across"
    if side * 1.25 < data.shortest:
        return Choice(side, f"{sees}, a crop shows {(side / draft.structure) ** 2:.0f} of them")
    if len(data.sizes) == 1 and data.shortest == data.longest:
        return Choice(None, f"whole images: {data.shortest} pixels are not much more than a crop of {side}")
    divisor = 2**draft.depth
    return Choice(max(data.shortest // divisor * divisor, 1), f"{sees}; as large as the shortest side allows")


def crop_of_labeled(draft: Draft) -> Choice | None:
    """Whole images, since a crop may miss what the label is about; crops where sizes differ."""
    data = draft.data
    if len(data.sizes) == 1:
        return None
    advice = "a crop may miss what the label is about: better bring all to one size, `sizes:` of the data config"
    return Choice(data.shortest, f"{len(data.sizes)} sizes, and a batch needs one; {advice}")


def batch_size(draft: Draft) -> Choice:
    """As many crops as make the usual number of pixels; fewer where there are few different ones."""
    side = draft.values["data.crop"] or math.sqrt(draft.data.area)
    usual = min(max(power_of_two(PIXELS / side**2), 2), 64)
    distinct = draft.data.n_train * draft.data.area / side**2
    size = max(min(usual, power_of_two(distinct / 4)), 2)
    if smaller := _smaller_batch(draft, size, side, max(power_of_two(SMALLEST_PIXELS / side**2), min(size, 4))):
        return smaller
    if size < usual:
        return Choice(size, f"the training images are only {distinct:.0f} crops: smaller batches, more steps")
    return Choice(size, f"{size * side**2 / 1e6:.2g} million pixels in a step")


def batch_size_of_labeled(draft: Draft) -> Choice:
    """Larger batches for more images, as memory and time allow."""
    n, side = draft.data.n_train, draft.values.get("data.crop") or math.sqrt(draft.data.area)
    wanted = 8 if n < 100 else 32 if n < 5000 else 128
    size = max(2, min(wanted, power_of_two(n / 4), power_of_two(16 * PIXELS / side**2)))
    return _smaller_batch(draft, size, side, min(size, 8)) or Choice(size, f"{n} images of {side:.0f} pixels")


def _smaller_batch(draft: Draft, size: int, side: float, least: int) -> Choice | None:
    """A batch with which `ENOUGH_STEPS` fit into the time, of at least `least` samples; None if `size` does."""
    n_steps = draft.steps(16, size * side**2)
    fitting = max(power_of_two(size * n_steps / ENOUGH_STEPS), least)
    return Choice(fitting, f"{size} would leave time for {n_steps:.0f} steps only") if fitting < size else None


def crops_per_image(draft: Draft) -> Choice | None:
    """Several crops or passes of each image in an epoch, so that an epoch is long enough to be worth a validation."""
    steps = min(max(draft.steps(16) / EPOCHS, 25), 200)
    n = math.ceil(steps * draft.values["data.batch_size"] / draft.data.n_train)
    if n == 1:
        return None
    return Choice(n, f"{draft.data.n_train} training images: an epoch has about {steps:.0f} steps")


def eval_batch_size(draft: Draft) -> Choice | None:
    """Whole images in validation: one at a time where they are large."""
    longest = draft.data.longest
    return Choice(1, f"validation takes whole images, up to {longest} pixels long") if longest > 1024 else None


def length(draft: Draft) -> Choice:
    """The time that was asked for."""
    minutes = int(draft.minutes) if draft.minutes == int(draft.minutes) else draft.minutes
    return Choice(minutes, "epochs and learning rate follow from the speed of the first steps")


def balanced(draft: Draft) -> Choice | None:
    """Equally many images of each class, where one is rare."""
    rarest, commonest = min(draft.data.labels.values()), max(draft.data.labels.values())
    if draft.data.multi_label or commonest < IMBALANCE * max(rarest, 1) or rarest < 2:
        return None
    return Choice(True, f"the commonest class has {commonest} training images, the rarest {rarest}")


def foreground_crops(draft: Draft) -> Choice | None:
    """Crops on the foreground, where random ones hardly show it; half of them for classes that are rare in it."""
    shares = {name: share for name, share in draft.data.mask.items() if share and name != draft.data.background}
    rarest = min(shares, key=lambda name: shares[name], default=None)
    if draft.values["data.crop"] is None or rarest is None:
        return None
    if draft.data.foreground < SPARSE:
        return Choice(0.9, f"{format_percent(draft.data.foreground)} of the pixels are foreground")
    if shares[rarest] < RARE:
        return Choice(0.5, f"{rarest} is {format_percent(shares[rarest])} of the pixels; classes are centered in turn")
    return None


def transforms(draft: Draft) -> Choice:
    """The symmetries that leave the images alike."""
    seen, crop_side = draft.data.appearance, draft.values.get("data.crop")
    left_right, up_down, turns = seen.symmetric
    shares = ", ".join(
        f"{name} {format_percent(share)}"
        for name, share in zip(("left-right", "up-down", "turned"), seen.asymmetry, strict=True)
    )
    reason = f"mirrored images differ systematically by: {shares} (over {seen.n_independent} images or groups)"
    if seen.n_independent < FEWEST:
        photographs = draft.data.n_channels == 3 and draft.data.dtype == "uint8"
        up_down, turns = (up_down and not photographs), (turns and not photographs)
        kind = "color photographs have an up" if photographs else "no preferred direction is assumed"
        reason = f"{seen.n_independent} independent image{'s' * (seen.n_independent != 1)} are too few to know: {kind}"
    square = crop_side is not None or all(height == width for height, width in draft.data.sizes)
    if turns and square:
        names = ["D4"]
    else:
        names = [n for n, on in (("HorizontalFlip", left_right), ("VerticalFlip", up_down)) if on]
        reason += "; no quarter turns of images that are not square" if turns else ""
    kinds = [{"class_path": f"albumentations.{n}", "init_args": {"p": 1 if n == "D4" else 0.5}} for n in names]
    return Choice(kinds or None, reason)
