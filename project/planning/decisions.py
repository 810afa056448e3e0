"""The decisions of a plan, in their order; to add one, write a function in `sampling` or `learning` and a line here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from project.data.normalization import Choice, Levels, choose_target_normalization
from project.errors import UserError
from project.planning import learning, sampling
from project.planning.draft import Draft
from project.planning.fingerprint import Fingerprint
from project.planning.machine import Machine

ALL = tuple(learning.TASKS)
DENSE, PER_IMAGE = ("translation", "segmentation", "pretraining"), ("classification", "regression")


@dataclass(frozen=True)
class Decision:
    """A key of the experiment, the function that decides it, and the tasks that have it."""

    key: str
    decide: Callable[[Draft], Choice | None]
    tasks: Sequence[str] = ALL


# A decision may use the values of those above it.
DECISIONS = (
    Decision("data.dataset", lambda draft: Choice(draft.data.dataset, "")),
    Decision("data.fold", sampling.fold),
    Decision("data.crop", sampling.crop, DENSE),
    Decision("data.crop", sampling.crop_of_labeled, PER_IMAGE),
    Decision("data.batch_size", sampling.batch_size, DENSE),
    Decision("data.batch_size", sampling.batch_size_of_labeled, PER_IMAGE),
    Decision("data.crops_per_image", sampling.crops_per_image),
    Decision("data.eval_batch_size", sampling.eval_batch_size),
    Decision("length.minutes", sampling.length),
    Decision("data.balanced", sampling.balanced, ("classification",)),
    Decision("data.foreground_crops", sampling.foreground_crops, ("segmentation",)),
    Decision("data.transforms", sampling.transforms),
    Decision("model.class_path", learning.task_class),
    Decision("model.init_args.net", learning.network, DENSE),
    Decision("model.init_args.net", learning.classifier, PER_IMAGE),
    Decision("model.init_args.pretrained", learning.pretrained, ("segmentation", *PER_IMAGE)),
    Decision("model.init_args.size_divisor", learning.size_divisor, PER_IMAGE),
    Decision("model.init_args.objects", learning.objects, ("segmentation",)),
    Decision("model.init_args.input_normalization", learning.input_normalization),
    Decision(
        "model.init_args.target_normalization",
        lambda draft: choose_target_normalization(draft.data.targets or Levels()),
        ("translation",),
    ),
    Decision("model.init_args.loss", learning.loss),
    Decision("model.init_args.intensity_augmentation", learning.intensity_augmentation),
    Decision("checkpoint", learning.checkpoint),
    Decision("trainer.precision", learning.precision),
    Decision("optimizer.init_args", learning.optimizer),
)


def decide_all(data: Fingerprint, machine: Machine, task: str, minutes: float) -> dict[str, Choice]:
    """All decisions for one task: key -> value and reason."""
    choices: dict[str, Choice] = {}
    for decision in DECISIONS:
        draft = Draft(data, machine, task, minutes, {key: choice.value for key, choice in choices.items()})
        if task in decision.tasks and (choice := decision.decide(draft)) is not None:
            choices[decision.key] = choice
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
    tasks = [task for task, (_, role, _) in learning.TASKS.items() if role in data.roles]
    if len(data.labels) < 2 and "classification" in tasks:
        tasks.remove("classification")
    return tasks or ["pretraining"]
