"""Options that break a promise of a training are refused, each with what to write instead."""

import inspect
from contextlib import nullcontext

import pytest
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from project.errors import UserError
from project.training.refusals import CALLBACKS, OPTIONS, refuse_options


def defaults(class_):
    parameters = inspect.signature(class_.__init__).parameters
    return {name: p.default for name, p in parameters.items() if name != "self"}


def config(callbacks=(), **settings):
    """A configuration as the shipped default, with other values of `trainer.x` or `checkpoint.x`."""
    trainer = defaults(Trainer) | {"max_epochs": 3, "use_distributed_sampler": False, "callbacks": None}
    checkpoint = defaults(ModelCheckpoint) | {"filename": "best", "monitor": "val/loss", "save_last": True}
    sections = {"trainer": trainer, "checkpoint": checkpoint}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    specs = [Namespace(class_path=path, init_args=Namespace(arguments)) for path, arguments in callbacks]
    return Namespace(trainer=Namespace(trainer | {"callbacks": specs}), checkpoint=Namespace(checkpoint))


REFUSED = [
    ("checkpoint.save_top_k", 3),
    ("checkpoint.train_time_interval", "00:10:00"),
    ("checkpoint.dirpath", "/elsewhere"),
    ("checkpoint.every_n_train_steps", 4),
    ("checkpoint.save_on_exception", True),
    ("checkpoint.filename", "last"),
    ("checkpoint.filename", "../best"),
    ("trainer.max_epochs", 0),
    ("trainer.max_steps", 0),
    ("trainer.max_time", "00:01:00:00"),
    ("trainer.limit_train_batches", 0),
    ("trainer.limit_val_batches", 0),
    ("trainer.val_check_interval", 0),
    ("trainer.check_val_every_n_epoch", 0),
    ("trainer.overfit_batches", 2),
    ("trainer.enable_checkpointing", False),
    ("trainer.use_distributed_sampler", True),
    ("trainer.barebones", True),
    ("trainer.precision", "16-true"),
    ("trainer.reload_dataloaders_every_n_epochs", 1),
    ("trainer.strategy", "fsdp"),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_what_breaks_a_promise_is_refused(key, value):
    with pytest.raises(UserError, match=f"{key} "):
        refuse_options(config(**{key: value}))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"checkpoint.filename": "{epoch}-{val/loss:.2f}", "checkpoint.every_n_epochs": 2},
        {"trainer.max_epochs": -1, "trainer.limit_val_batches": 1, "trainer.precision": "bf16-mixed"},
    ],
)
def test_what_keeps_the_promises_is_taken(settings):
    refuse_options(config(**settings))


def test_all_that_is_refused_is_listed_at_once():
    with pytest.raises(UserError) as error:
        refuse_options(config(**{"trainer.barebones": True, "trainer.overfit_batches": 2, "checkpoint.save_top_k": 3}))
    assert str(error.value).count("\n  - ") == 3


PATH = "lightning.pytorch.callbacks."


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {}) for name in CALLBACKS),
        ("ModelCheckpoint", {"filename": "best"}),
        ("ModelCheckpoint", {"filename": "x", "save_last": True}),
    ],
)
def test_callbacks_that_are_refused(name, arguments):
    with pytest.raises(UserError, match=name):
        refuse_options(config([(PATH + name, arguments)]))


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        (PATH + "EarlyStopping", {"monitor": "val/loss"}),
        (PATH + "EMAWeightAveraging", {}),
        (PATH + "ModelCheckpoint", {"filename": "{epoch}", "save_top_k": -1}),
    ],
)
def test_callbacks_that_are_taken(path, arguments):
    refuse_options(config([(path, arguments)]))


@pytest.mark.parametrize(("every", "refused"), [(3, False), (4, True)])
def test_a_training_that_ends_before_its_first_validation_is_refused(every, refused):
    with pytest.raises(UserError, match="first validation") if refused else nullcontext():
        refuse_options(config(**{"trainer.check_val_every_n_epoch": every}))


def test_only_one_default_of_lightning_is_refused():
    """The shipped configuration sets it."""
    given = {f"trainer.{k}": v for k, v in defaults(Trainer).items()}
    given |= {f"checkpoint.{k}": v for k, v in defaults(ModelCheckpoint).items()}
    assert set(OPTIONS) <= set(given)
    assert [key for key, (is_wrong, _) in OPTIONS.items() if is_wrong(given[key])] == [
        "trainer.use_distributed_sampler"
    ]
