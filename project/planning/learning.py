"""Decisions on the other sections of a plan: task, network, loss, normalization, metric, optimizer.

Each function takes a `Draft`, and gives a value and its reason; None leaves the key out.
"""

import math
from typing import Any

from project.data.drift import NOTICEABLE
from project.data.normalization import HEAVY_TAIL, Choice, choose_input_normalization, describe_spread
from project.formatting import format_percent
from project.planning.draft import Draft, receptive_field
from project.planning.fingerprint import Fingerprint
from project.planning.machine import DECODER

# Task -> its class, what the data needs for it, and that in words.
TASKS = {
    "translation": ("project.tasks.translation.TranslationTask", "target", "target images"),
    "segmentation": ("project.tasks.segmentation.SegmentationTask", "mask", "masks"),
    "classification": ("project.tasks.classification.ClassificationTask", "label", "labels"),
    "regression": ("project.tasks.regression.RegressionTask", "value", "numbers per image"),
    "pretraining": ("project.tasks.masked.MaskedImageTask", "", "no targets: hidden patches are filled in"),
}
TOUCHING = 0.05  # share of objects that touch from which on they have to be separated
FEW_STEPS, MANY_STEPS = 300, 4000  # a smaller or larger network than the usual one
ENCODED = 64  # pixels: smaller images leave little to an encoder of photographs (Fashion-MNIST: no gain)
FEW_IMAGES = 50  # below, the loss is steadier than a share of right answers
IMBALANCE = 3.0  # commonest label to the rarest


def task_class(draft: Draft) -> Choice:
    """The task."""
    path, _, what = TASKS[draft.task]
    return Choice(path, f"the data has {what}")


def network(draft: Draft) -> Choice:
    """A U-Net that sees some structures, as wide as the time allows."""
    width = 32 if draft.steps(32) >= MANY_STEPS else 16 if draft.steps(16) >= FEW_STEPS else 8
    steps, depth = draft.steps(width), draft.depth
    arguments: dict[str, Any] = {"width": width, "depth": depth}
    reason = (
        f"sees {receptive_field(depth)} pixels, structures have {draft.structure:.0f}; about {steps:.0f} steps of this"
        f" width in {draft.minutes:g} minutes ({draft.machine.device}){_pretrained(draft.data)}"
    )
    if draft.task == "segmentation" and choose_input_normalization(draft.data.inputs).value.startswith("image_"):
        if (encoder := draft.machine.encoder) and draft.steps(None) >= FEW_STEPS:
            path, arguments = "segmentation_models_pytorch.Unet", {"encoder_name": encoder.name}
            arguments |= {"encoder_weights": None, "decoder_channels": DECODER}
            reason = f"about {draft.steps(None):.0f} steps in {draft.minutes:g} minutes ({draft.machine.device})"
            reason += ". Several kinds of image: there, pretrained weights led to more in the same time (nuclei: "
            return Choice({"class_path": path, "init_args": arguments}, reason + "objects F1 0.81 for 0.78)")
        arguments |= {"norm": "instance", "skip": "add"}
        reason += ". Several kinds of image: instance norm learned in half of the steps there (nuclei: objects F1 "
        reason += "0.79 for 0.73 after 500), though prediction in tiles is slower. Where skips are added, "
        reason += "steps are faster by a quarter"
    return Choice({"class_path": "project.models.unet.UNet", "init_args": arguments}, reason)


def pretrained(draft: Draft) -> Choice | None:
    """The weights of the encoder, if the network has that one."""
    arguments, encoder = draft.values["model.init_args.net"]["init_args"], draft.machine.encoder
    if encoder is None or arguments.get("encoder_name") != encoder.name:
        return None
    return Choice(encoder.pretrained(depth=arguments.get("depth", 5)), "in data/pretrained, or in the cache")


def _pretrained(data: Fingerprint) -> str:
    """A hint for 8-bit color images: nothing that needs a download is chosen."""
    is_color = data.n_channels == 3 and data.dtype == "uint8"
    advice = "encoder_weights: imagenet` (as unet_dice), with `input_normalization: encoder`, often helps more"
    return f". 8-bit color: an encoder with `{advice}" if is_color else ""


def classifier(draft: Draft) -> Choice:
    """An encoder that halves until a feature is half a structure, or a few are left of the image.

    On the demo (structures of 20 pixels, 1000 steps) three halvings of a ResNet-18 gave an accuracy of 0.70, four 0.56,
    three with dropout of 0.2 0.66. A pretrained encoder sees more in deeper features: four gave 0.93, three 0.87.
    """
    side, encoder = draft.data.shortest, draft.machine.encoder
    by_image, by_structure = math.log2(max(side / 3, 1)), math.log2(max(draft.structure / 2, 1))
    depth = min(max(round(min(by_image, by_structure)), 3), 5)
    arguments: dict[str, Any] = {"encoder_name": "resnet18", "encoder_weights": None, "depth": depth}
    advice = _pretrained(draft.data)
    if encoder and side >= ENCODED:
        arguments |= {"encoder_name": encoder.name, "depth": (depth := min(depth + 1, 5))}
        advice = ". Pretrained weights led to more in the same time (demo: accuracy 0.93 for 0.70)"
    net = {"class_path": "project.models.classifier.EncoderClassifier", "init_args": arguments}
    left = max(side // 2**depth, 1)
    reason = f"{left} x {left} features are left of {side} pixels; structures have {draft.structure:.0f}"
    return Choice(net, reason + advice)


def size_divisor(draft: Draft) -> Choice | None:
    """Padding of images that are too small for the encoder."""
    depth = draft.values["model.init_args.net"]["init_args"]["depth"]
    return Choice(2**depth, f"images of {draft.data.shortest} pixels") if draft.data.shortest < 2**depth else None


def objects(draft: Draft) -> Choice | None:
    """How touching objects are separated."""
    found = draft.data.objects
    if found is None:
        return None
    if found.touching < TOUCHING:
        return Choice("components", f"{format_percent(found.touching)} of {found.n} objects touch another")
    size = f"centers at least {found.diameter / 3:.0f} pixels apart, objects of {found.smallest_area / 2:.0f} pixels"
    return Choice("depth", f"{format_percent(found.touching)} of {found.n} objects touch another; {size}, by default")


def input_normalization(draft: Draft) -> Choice:
    """By the spread of the values; `make inspect` shows it too."""
    choice = choose_input_normalization(draft.data.inputs)
    if "model.init_args.pretrained" not in draft.values:
        return choice
    value = "image_mean_std" if choice.value.startswith("image_") else "mean_std"
    return Choice(value, f"{choice.reason} The encoder expects mean 0 and standard deviation 1")


def loss(draft: Draft) -> Choice:
    """The loss of the task, for the values or classes that there are."""
    data, cross_entropy = draft.data, "project.losses.CrossEntropy"
    if draft.task == "segmentation":
        dice = {"class_path": "segmentation_models_pytorch.losses.DiceLoss", "init_args": {"mode": "multiclass"}}
        losses = {"losses": [dice, {"class_path": cross_entropy}]}
        shares = ", ".join(f"{name} {format_percent(share)}" for name, share in list(data.mask.items())[:4])
        reason = f"Dice does not mind that classes differ in size ({shares}), cross entropy has gradients early on"
        return Choice({"class_path": "project.losses.WeightedSum", "init_args": losses}, reason)
    if draft.task == "classification":
        counts = [n for n in data.labels.values() if n] or [1]
        if not data.multi_label:
            smoothing = {"class_path": cross_entropy, "init_args": {"label_smoothing": 0.1}}
            return Choice(smoothing, "labels may be wrong now and then: certainty would be, too")
        if max(counts) < IMBALANCE * min(counts):
            return Choice(cross_entropy, "any number of classes per image, none of them rare")
        weighted = {"class_path": cross_entropy, "init_args": {"class_weights": "balanced"}}
        return Choice(weighted, f"the commonest class has {max(counts)} training images, the rarest {min(counts)}")
    if draft.task == "regression":
        return Choice("torch.nn.SmoothL1Loss", "a few extreme images do not decide everything")
    tail = data.targets.tail if data.targets and draft.task == "translation" else 1.0
    if tail > HEAVY_TAIL and draft.values.get("model.init_args.target_normalization") != "asinh":
        reason = f"the brightest pixels are {tail:.1f} times as far from the median as the 99.9th percentile"
        return Choice("torch.nn.SmoothL1Loss", reason)
    return Choice("torch.nn.MSELoss", "R2 is measured, and no few pixels decide it")


def intensity_augmentation(draft: Draft) -> Choice:
    """Gain, offset and noise, where brightness differs between images and hardly tells what is predicted."""
    levels, camera_noise = draft.data.inputs, draft.data.appearance.noise
    if levels.must_stay:
        return Choice(None, f"brightness explains {format_percent(levels.informs)} of what is predicted")
    if levels.apart < NOTICEABLE:  # nothing to be made robust against
        return Choice(None, describe_spread(levels))
    noise = round(min(max(camera_noise / 2, 0.01), 0.1), 2)  # on top of that of the camera
    path = "project.transforms.intensity.IntensityAugmentation"
    reason = f"{describe_spread(levels)}; noise is {format_percent(camera_noise)} of the contrast"
    return Choice({"class_path": path, "init_args": {"noise": noise}}, reason)


def checkpoint(draft: Draft) -> Choice:
    """The metric that the task is judged by."""
    n, name, mode = draft.data.n_val, "r2", "max"
    reason = f"what the task is judged by, on {n} images"
    if draft.task == "segmentation":
        name = "object_ap" if draft.data.objects else "dice"
        reason = "single objects count; steadier than F1 at one IoU" if draft.data.objects else reason
    elif draft.task == "classification":
        name = "average_precision" if draft.data.multi_label else "balanced_accuracy"
        if n < FEW_IMAGES:
            name, mode, reason = "loss", "min", f"steadier than a share of right answers on {n} images"
    elif draft.task in ("regression", "pretraining"):
        name, mode = ("mae" if draft.task == "regression" else "mse"), "min"
    return Choice({"monitor": f"val/{name}", "mode": mode}, reason)


def precision(draft: Draft) -> Choice | None:
    """Mixed precision where it is faster: on recent GPUs, and on CPUs that compute in bfloat16."""
    if "model.init_args.pretrained" in draft.values and draft.machine.device == "cpu":
        return None  # the depthwise convolutions of many encoders are slower in bfloat16 there
    reason = f"{draft.machine.bf16_speed:.2g} times as fast as 32-true on this machine"
    return Choice("bf16-mixed", reason) if draft.machine.mixed else None


def optimizer(draft: Draft) -> Choice:
    """Learning rate by the size of the network; more decay where labels are few."""
    width = draft.values["model.init_args.net"]["init_args"].get("width")
    if "model.init_args.pretrained" in draft.values and draft.task == "segmentation":
        return Choice({"lr": 2e-3}, "as was good for a pretrained encoder")
    if width is None:
        return Choice({"lr": 1e-3, "weight_decay": 5e-2}, "one label per image is little to learn from")
    return Choice({"lr": 3e-3 if width <= 16 else 2e-3}, "a small network takes larger steps")
