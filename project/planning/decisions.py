"""Decisions of a plan: each is a small function from the facts to a value and its reason, in the order of the plan.

To change a rule, edit its function or a threshold. To add one, write a function of a `Draft` with `@decision(KEY)`: KEY
is any key of an experiment, and `draft.values` has what was decided before. None leaves the key out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from project.errors import UserError
from project.formatting import format_number, format_percent
from project.planning.appearance import FEWEST
from project.planning.fingerprint import Fingerprint
from project.planning.machine import Machine

# Task -> its class, and what of the data it is for.
TASKS = {
    "translation": ("project.tasks.translation.TranslationTask", "target images"),
    "segmentation": ("project.tasks.segmentation.SegmentationTask", "masks"),
    "classification": ("project.tasks.classification.ClassificationTask", "labels"),
    "regression": ("project.tasks.regression.RegressionTask", "numbers per image"),
    "pretraining": ("project.tasks.masked.MaskedImageTask", "nothing but images: hidden patches are filled in"),
}
NEEDS = {"translation": "target", "segmentation": "mask", "classification": "label", "regression": "value"}
DENSE, PER_IMAGE = ("translation", "segmentation", "pretraining"), ("classification", "regression")

TOUCHING = 0.05  # share of objects that touch from which on they have to be separated
CONTEXT = 3  # the network should see so many structures across
CROP_STRUCTURES, SMALLEST_CROP, LARGEST_CROP = 4, 128, 512
PIXELS = 16 * 128**2  # of a batch of crops
VALIDATION_BYTES = 6 * 4 * 16  # of each pixel of a whole image, at full resolution: six float32 arrays of 16 channels
FEW_STEPS, MANY_STEPS = 300, 4000  # a smaller or larger network than the usual one
EPOCHS = 20  # in a training: as often can it be validated
SPARSE, RARE = 0.1, 0.02  # share of foreground, or of a class, below which random crops hardly show it
IMBALANCE = 3.0  # commonest label to the rarest
INFORMS = 0.2  # share of what is predicted that brightness explains, from which on it must not be augmented
SAME_LAMP = 0.1  # spread of brightness between images below which there is nothing to be made robust against
HEAVY_TAIL, FLAT = 3.0, 0.01  # as `project.data.inspection.advice` has them
FEW_IMAGES = 50  # below, the loss is steadier than a share of right answers


class Choice(NamedTuple):
    """A value of the experiment, and why."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Draft:
    """What a decision may depend on; `values` are those decided before, by key."""

    data: Fingerprint
    machine: Machine
    task: str
    minutes: float
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def structure(self) -> float:
        """Diameter of objects or structures in pixels; of large ones where objects are annotated."""
        objects = self.data.objects if self.task == "segmentation" else None
        return objects.large_diameter if objects else self.data.appearance.structure

    @property
    def depth(self) -> int:
        """Halvings of a U-Net: as many as it takes to see `CONTEXT` structures, and as the images allow."""
        wanted = next((d for d in range(2, 6) if receptive_field(d) >= CONTEXT * self.structure), 5)
        return max(1, min(wanted, int(math.log2(max(self.data.shortest / 4, 2)))))

    @property
    def batch_pixels(self) -> float:
        """Pixels of a training batch."""
        crop = self.values.get("data.crop")
        return self.values["data.batch_size"] * (crop**2 if crop else self.data.area)


Decide = Callable[[Draft], Choice | None]
DECISIONS: list[tuple[str, Sequence[str], Decide]] = []


def decision(key: str, tasks: Sequence[str] = tuple(TASKS)) -> Callable[[Decide], Decide]:
    """Add a function to the decisions on plans for these tasks."""

    def register(decide: Decide) -> Decide:
        DECISIONS.append((key, tasks, decide))
        return decide

    return register


def decide_all(data: Fingerprint, machine: Machine, task: str, minutes: float) -> dict[str, Choice]:
    """All decisions for one task: key -> value and reason."""
    choices: dict[str, Choice] = {}
    for key, tasks, decide in DECISIONS:
        draft = Draft(data, machine, task, minutes, {name: choice.value for name, choice in choices.items()})
        if task in tasks and (choice := decide(draft)) is not None:
            choices[key] = choice
    return choices


def possible_tasks(data: Fingerprint) -> list[str]:
    """Tasks that the data has targets for; pretraining where it has none.

    Raises:
        UserError: There are no validation images.
    """
    if not data.n_val:
        raise UserError(
            f"{data.dataset} has no validation images, which choose the best checkpoint: give the split a share for "
            "`val`, or folds, in its data config, and prepare it again"
        )
    tasks = [task for task, role in NEEDS.items() if role in data.roles]
    if len(data.labels) < 2 and "classification" in tasks:
        tasks.remove("classification")
    return tasks or ["pretraining"]


def receptive_field(depth: int) -> int:
    """Of `project.models.unet.UNet` in pixels: two convolutions on each level down and up."""
    return 13 * 2**depth - 8


def power_of_two(value: float) -> int:
    """The largest power of two that is not above a value, at least 1."""
    return 2 ** max(0, int(math.log2(max(value, 1))))


# Decisions, in the order of the plan ----------------------------------------------------------------------------------


@decision("data.dataset")
def dataset(draft: Draft) -> Choice:
    """The dataset."""
    return Choice(draft.data.dataset, "")


@decision("data.fold")
def fold(draft: Draft) -> Choice | None:
    """The first fold, where the data has folds."""
    n = draft.data.n_folds
    return Choice(0, f"one of {n}, to validate on; `make train FOLD=1` takes another") if n else None


@decision("data.crop", DENSE)
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


@decision("data.crop", PER_IMAGE)
def crop_of_labeled(draft: Draft) -> Choice | None:
    """Whole images, since a crop may miss what the label is about; crops where sizes differ."""
    data = draft.data
    if len(data.sizes) == 1:
        return None
    advice = "a crop may miss what the label is about: better bring all to one size, `sizes:` of the data config"
    return Choice(data.shortest, f"{len(data.sizes)} sizes, and a batch needs one; {advice}")


@decision("data.batch_size", DENSE)
def batch_size(draft: Draft) -> Choice:
    """As many crops as make the usual number of pixels; fewer where there are few different ones."""
    side = draft.values["data.crop"] or math.sqrt(draft.data.area)
    usual = min(max(power_of_two(PIXELS / side**2), 2), 64)
    distinct = draft.data.n_train * draft.data.area / side**2
    size = max(min(usual, power_of_two(distinct / 4)), 2)
    if size < usual:
        return Choice(size, f"the training images are only {distinct:.0f} crops: smaller batches, more steps")
    return Choice(size, f"{size * side**2 / 1e6:.2g} million pixels in a step")


@decision("data.batch_size", PER_IMAGE)
def batch_size_of_labeled(draft: Draft) -> Choice:
    """Larger batches for more images, as memory and time allow."""
    n, side = draft.data.n_train, draft.values.get("data.crop") or math.sqrt(draft.data.area)
    wanted = 8 if n < 100 else 32 if n < 5000 else 128
    size = max(2, min(wanted, power_of_two(n / 4), power_of_two(16 * PIXELS / side**2)))
    return Choice(size, f"{n} images of {side:.0f} pixels")


@decision("data.crops_per_image")
def crops_per_image(draft: Draft) -> Choice | None:
    """Several crops or passes of each image in an epoch, so that an epoch is long enough to be worth a validation."""
    steps = min(max(expected_steps(draft, 16) / EPOCHS, 25), 200)
    n = math.ceil(steps * draft.values["data.batch_size"] / draft.data.n_train)
    if n == 1:
        return None
    return Choice(n, f"{draft.data.n_train} training images: an epoch has about {steps:.0f} steps")


@decision("data.eval_batch_size")
def eval_batch_size(draft: Draft) -> Choice | None:
    """Whole images in validation: one at a time where they are large."""
    if draft.data.longest <= 1024:
        return None
    reason = f"validation takes whole images, up to {draft.data.longest} pixels long"
    needed, memory = max(h * w for h, w in draft.data.sizes) * VALIDATION_BYTES / 1e9, draft.machine.memory
    if needed > memory:
        reason += f": about {needed:.0f} GB of {memory:.0f}; cut them by `sizes:` of the data config"
    return Choice(1, reason)


@decision("length.minutes")
def length(draft: Draft) -> Choice:
    """The time that was asked for."""
    steps = format_number(expected_steps(draft, 16))
    return Choice(draft.minutes, f"about {steps} steps on this machine; the learning rate falls to zero at its end")


@decision("data.balanced", ("classification",))
def balanced(draft: Draft) -> Choice | None:
    """Equally many images of each class, where one is rare."""
    rarest, commonest = min(draft.data.labels.values()), max(draft.data.labels.values())
    if draft.data.multi_label or commonest < IMBALANCE * max(rarest, 1) or rarest < 2:
        return None
    return Choice(True, f"the commonest class has {commonest} training images, the rarest {rarest}")


@decision("data.foreground_crops", ("segmentation",))
def foreground_crops(draft: Draft) -> Choice | None:
    """Half of the crops on the foreground, where random ones hardly show it."""
    shares = {name: share for name, share in draft.data.mask.items() if share and name != draft.data.background}
    rarest = min(shares, key=lambda name: shares[name], default=None)
    if draft.values["data.crop"] is None or rarest is None:
        return None
    if draft.data.foreground < SPARSE:
        return Choice(0.5, f"{format_percent(draft.data.foreground)} of the pixels are foreground")
    if shares[rarest] < RARE:
        return Choice(0.5, f"{rarest} is {format_percent(shares[rarest])} of the pixels; classes are centered in turn")
    return None


@decision("data.transforms")
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
        photographs = len(draft.data.image.names) == 3 and draft.data.image.dtype == "uint8"
        up_down, turns = (up_down and not photographs), (turns and not photographs)
        kind = "color photographs have an up" if photographs else "no preferred direction is assumed"
        reason = f"{seen.n_independent} independent image{'s' * (seen.n_independent != 1)} cannot tell: {kind}"
    square = crop_side is not None or all(height == width for height, width in draft.data.sizes)
    if turns and square:
        names = ["D4"]
    else:
        names = [n for n, on in (("HorizontalFlip", left_right), ("VerticalFlip", up_down)) if on]
        reason += "; no quarter turns of images that are not square" if turns else ""
    kinds = [{"class_path": f"albumentations.{n}", "init_args": {"p": 1 if n == "D4" else 0.5}} for n in names]
    return Choice(kinds or None, reason)


@decision("model.class_path")
def task_class(draft: Draft) -> Choice:
    """The task."""
    path, what = TASKS[draft.task]
    return Choice(path, f"the data has {what}")


@decision("model.init_args.net", DENSE)
def network(draft: Draft) -> Choice:
    """A U-Net that sees some structures, as wide as the time allows."""
    width = 32 if expected_steps(draft, 32) >= MANY_STEPS else 16 if expected_steps(draft, 16) >= FEW_STEPS else 8
    steps, depth = expected_steps(draft, width), draft.depth
    net = {"class_path": "project.models.unet.UNet", "init_args": {"width": width, "depth": depth}}
    return Choice(
        net,
        f"sees {receptive_field(depth)} pixels, structures have {draft.structure:.0f}; about {format_number(steps)} "
        f"steps of this width in {draft.minutes:g} minutes ({draft.machine.device})",
    )


@decision("model.init_args.net", PER_IMAGE)
def classifier(draft: Draft) -> Choice:
    """A ResNet-18 that halves until a feature is a structure, or a few are left of the image."""
    side = draft.data.shortest
    by_image, by_structure = math.log2(max(side / 3, 1)), math.log2(max(draft.structure, 1))
    depth = min(max(round(min(by_image, by_structure)), 3), 5)
    arguments: dict[str, Any] = {"encoder_name": "resnet18", "encoder_weights": None, "depth": depth}
    if draft.data.n_train < 5000:
        arguments["dropout"] = 0.2
    net = {"class_path": "project.models.classifier.EncoderClassifier", "init_args": arguments}
    left = max(side // 2**depth, 1)
    return Choice(net, f"{left} x {left} features are left of {side} pixels; structures have {draft.structure:.0f}")


@decision("model.init_args.size_divisor", PER_IMAGE)
def size_divisor(draft: Draft) -> Choice | None:
    """Padding of images that are too small for the encoder."""
    depth = draft.values["model.init_args.net"]["init_args"]["depth"]
    return Choice(2**depth, f"images of {draft.data.shortest} pixels") if draft.data.shortest < 2**depth else None


@decision("model.init_args.objects", ("segmentation",))
def objects(draft: Draft) -> Choice | None:
    """How touching objects are separated."""
    found = draft.data.objects
    if found is None:
        return None
    if found.touching < TOUCHING:
        return Choice("components", f"{format_percent(found.touching)} of {found.n} objects touch another")
    return Choice(
        "depth", f"{format_percent(found.touching)} of {found.n} objects touch another: learned centers part them"
    )


@decision("model.init_args.loss")
def loss(draft: Draft) -> Choice:
    """The loss of the task, for the values or classes that there are."""
    data = draft.data
    if draft.task == "segmentation":
        parts = ["segmentation_models_pytorch.losses.DiceLoss", "project.losses.CrossEntropy"]
        losses = [{"class_path": parts[0], "init_args": {"mode": "multiclass"}}, {"class_path": parts[1]}]
        shares = ", ".join(f"{name} {format_percent(share)}" for name, share in list(data.mask.items())[:4])
        reason = f"Dice does not mind that classes differ in size ({shares}), cross entropy has gradients early on"
        return Choice({"class_path": "project.losses.WeightedSum", "init_args": {"losses": losses}}, reason)
    if draft.task == "classification":
        return _loss_of_labels(data)
    if draft.task == "regression":
        return Choice("torch.nn.SmoothL1Loss", "a few extreme images do not decide everything")
    if draft.task == "translation" and data.target and data.target.tail > HEAVY_TAIL:
        reason = (
            f"the brightest pixels are {data.target.tail:.1f} times as far from the median as the 99.9th percentile"
        )
        return Choice("torch.nn.SmoothL1Loss", reason)
    return Choice("torch.nn.MSELoss", "R2 is measured, and no few pixels decide it")


def _loss_of_labels(data: Fingerprint) -> Choice:
    counts = [n for n in data.labels.values() if n]
    if not data.multi_label:
        smoothing = {"class_path": "project.losses.CrossEntropy", "init_args": {"label_smoothing": 0.1}}
        return Choice(smoothing, "labels may be wrong now and then: certainty would be, too")
    if max(counts) < IMBALANCE * min(counts):
        return Choice("project.losses.BinaryCrossEntropy", "any number of classes per image, none of them rare")
    weighted = {"class_path": "project.losses.BinaryCrossEntropy", "init_args": {"class_weights": "balanced"}}
    return Choice(weighted, f"the commonest class has {max(counts)} training images, the rarest {min(counts)}")


@decision("model.init_args.input_normalization")
def input_normalization(draft: Draft) -> Choice:
    """By the training images together, or each image by itself where only the lamp differs."""
    image = draft.data.image
    if image.shifted and draft.data.brightness_informs < INFORMS:
        method = "image_mean_std" if image.flat > FLAT else "image_percentile"
        return Choice(method, f"brightness differs between groups or splits ({image.shifted} of them are shifted)")
    if image.tail > HEAVY_TAIL and image.flat < 1:
        reason = f"the maximum is {image.tail:.1f} times as far from the median as the 99.9th percentile"
        return Choice("percentile", reason)
    return Choice("mean_std", "no few pixels decide the range, and all groups have about the same brightness")


@decision("model.init_args.target_normalization", ("translation",))
def target_normalization(draft: Draft) -> Choice:
    """One scale for all images, which keeps the units."""
    target = draft.data.target
    assert target is not None
    if target.tail > HEAVY_TAIL and target.flat < 1:
        reason = f"the maximum is {target.tail:.1f} times as far from the median as the 99.9th percentile"
        return Choice("percentile", reason)
    return Choice("mean_std", "no few pixels decide the range")


@decision("model.init_args.intensity_augmentation")
def intensity_augmentation(draft: Draft) -> Choice | None:
    """Gain, offset and noise, where brightness differs between images and means nothing."""
    image, informs = draft.data.image, draft.data.brightness_informs
    if informs > INFORMS:
        return Choice(None, f"brightness means something: it explains {format_percent(informs)} of what is predicted")
    if image.spread < SAME_LAMP:
        spread = format_number(image.spread)
        return Choice(None, f"images differ by only {spread} standard deviations in brightness")
    noise = round(min(max(draft.data.appearance.noise / 2, 0.01), 0.1), 2)  # on top of that of the camera
    path = "project.transforms.intensity.IntensityAugmentation"
    return Choice(
        {"class_path": path, "init_args": {"noise": noise}},
        f"brightness differs by {format_number(image.spread)} standard deviations between images and means nothing; "
        f"noise is {format_percent(draft.data.appearance.noise)} of the contrast",
    )


@decision("checkpoint")
def checkpoint(draft: Draft) -> Choice:
    """The metric that the task is judged by."""
    n, name, mode = draft.data.n_val, "r2", "max"
    reason = f"the first column of the tables, on {n} images"
    if draft.task == "segmentation":
        name = "object_f1" if draft.data.objects else "dice"
        reason = "single objects are annotated: they are what counts" if draft.data.objects else reason
    elif draft.task == "classification":
        name = "average_precision" if draft.data.multi_label else "balanced_accuracy"
        if n < FEW_IMAGES:
            name, mode, reason = "loss", "min", f"steadier than a share of right answers on {n} images"
    elif draft.task in ("regression", "pretraining"):
        name, mode = ("mae" if draft.task == "regression" else "mse"), "min"
    return Choice({"monitor": f"val/{name}", "mode": mode}, reason)


@decision("trainer.precision")
def precision(draft: Draft) -> Choice | None:
    """Mixed precision on GPUs."""
    return Choice("bf16-mixed", "GPUs are faster with it") if draft.machine.device == "cuda" else None


@decision("optimizer.init_args")
def optimizer(draft: Draft) -> Choice:
    """Learning rate by the size of the network; more decay where labels are few."""
    if draft.task in PER_IMAGE:
        return Choice({"lr": 1e-3, "weight_decay": 5e-2}, "one label per image is little to learn from")
    width = draft.values["model.init_args.net"]["init_args"]["width"]
    return Choice({"lr": 3e-3 if width <= 16 else 2e-3}, "a small network takes larger steps")


def expected_steps(draft: Draft, width: int) -> float:
    """Training steps of a U-Net in the time of the plan, with a fifth for validation and start."""
    seconds = draft.machine.seconds[width] * draft.batch_pixels / 1e6
    return 0.8 * 60 * draft.minutes / seconds
