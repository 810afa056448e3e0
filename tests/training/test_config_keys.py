"""Mistakes that are told without importing what is configured."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from project.errors import UserError
from project.training import config_keys as spelling
from project.training.config_keys import CLASSES, LOGGERS, arguments, check

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "configs/default.yaml", *sorted((ROOT / "configs/experiments").glob("*.yaml"))]
CONTENT = {Path("e.yaml"): yaml.safe_load((ROOT / "configs/experiments/unet_mse.yaml").read_text())}
NET = "--model.init_args.net"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_files_pass(path):
    check({path: yaml.safe_load(path.read_text())}, [])


def test_arguments_are_those_that_python_sees():
    import lightning.pytorch as pl
    import segmentation_models_pytorch as smp
    import torch

    from project.data.datamodule import ImageDataModule
    from project.tasks.segmentation import SegmentationTask

    seen = {
        CLASSES["trainer"]: pl.Trainer,
        CLASSES["data"]: ImageDataModule,
        CLASSES["checkpoint"]: pl.callbacks.ModelCheckpoint,
        "lightning.pytorch.callbacks.EarlyStopping": pl.callbacks.EarlyStopping,
        "segmentation_models_pytorch.losses.DiceLoss": smp.losses.DiceLoss,
        "torch.optim.AdamW": torch.optim.AdamW,
    }
    for path, class_ in seen.items():
        found = inspect.signature(class_).parameters.values()
        assert arguments(path) == {p.name for p in found}
    # Its options go to the encoder, whose names are not known here.
    assert arguments("segmentation_models_pytorch.Unet") is None
    task = arguments("project.tasks.segmentation.SegmentationTask")
    assert task is not None
    assert {"net", "loss", "size_divisor", "channels_last"} <= task
    assert not task & {"self", "options"}
    assert set(inspect.signature(SegmentationTask).parameters) - {"options"} <= task


WRONG = [
    (["--trianer.max_epochs", "3"], 'unknown key "trianer". Did you mean "trainer"?'),
    (["--trainer.max_epoch=3"], 'unknown key "trainer.max_epoch". Did you mean "max_epochs"?'),
    (["--data.batch_sise", "3"], 'Did you mean "batch_size"?'),
    (["--checkpoint.monitr", "val/mse"], 'Did you mean "monitor"?'),
    ([f"{NET}.init_args.in_chanels", "3"], "model.init_args.net: unknown key"),
    (["--model.init_args.size_divisorr", "3"], 'Did you mean "size_divisor"?'),
    ([f"{NET}.class_path", "smp.Unet"], 'model.init_args.net: there is no class "smp.Unet"'),
    ([f"{NET}.class_path", "project.models.unet.Unet"], 'Did you mean "project.models.unet.UNet"?'),
    ([f"{NET}.class_path", "segmentation_models_pytorch.Unett"], 'Did you mean "segmentation_models_pytorch.Unet"?'),
    (["--optimizer.init_args.learning_rate", "1"], "of torch.optim.AdamW"),
]


@pytest.mark.parametrize(("typed", "message"), WRONG)
def test_what_is_typed_wrongly_is_told(typed, message):
    with pytest.raises(UserError) as error:
        check(CONTENT, typed)
    assert message in str(error.value)


RIGHT = [
    ["--trainer.max_epochs", "3", "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping"],
    ["--trainer.callbacks.patience", "3", "--seed_everything=1", "--print_config"],
    # What a whole value brings with it is not known here.
    [NET, "{class_path: torch.nn.Conv2d}", f"{NET}.init_args.kernel_size", "3"],
    ["--optimizer", "SGD", "--optimizer.momentum", "0.9", "--optimizer.init_args.nesterov", "true"],
    ["--model", "SegmentationTask", "--model.init_args.objects", "distance"],
    ["--config", "other.yaml", f"{NET}.init_args.anything", "3"],
    [f"{NET}.class_path", "torch.nn.Conv2d", f"{NET}.init_args.kernel_size", "3"],
    [f"{NET}.class_path", "segmentation_models_pytorch.Unet", f"{NET}.init_args.output_stride", "16"],
    ["--model.help", "project.tasks.segmentation.SegmentationTask"],
    ["--data.transforms", "[{class_path: albumentations.HorizontalFlip}]"],
]


@pytest.mark.parametrize("typed", RIGHT, ids=lambda typed: typed[0])
def test_what_may_be_right_is_left_to_the_parser(typed):
    check(CONTENT, typed)


def test_mistakes_in_files_name_the_file_and_the_place():
    content = {"model": {"class_path": "project.tasks.translation.TranslationTask", "init_args": {"size_divisr": 1}}}
    with pytest.raises(UserError, match=r'e.yaml: model: unknown key "size_divisr".*Did you mean "size_divisor"'):
        check({Path("e.yaml"): content}, [])
    transform = {"data": {"transforms": [{"class_path": "albumentationss.D4"}]}}
    with pytest.raises(UserError, match=r'e.yaml: data.transforms: there is no class "albumentationss.D4"'):
        check({Path("e.yaml"): transform}, [])
    with pytest.raises(UserError, match=r'unknown key "optimiser".*"optimizer"'):
        check({Path("e.yaml"): {"optimiser": {}}}, [])


def test_own_modules_are_read_without_running_them(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import Net as Renamed\nraise SystemExit('was run')\n")
    (package / "inner.py").write_text(
        "from .base import Base\n\n\nclass Net(Base):\n    def __init__(self, width, **options):\n"
        "        super().__init__(**options)\n"
    )
    (package / "base.py").write_text("class Base:\n    def __init__(self, *, depth=3):\n        pass\n")
    spelling._file.cache_clear()
    assert arguments("own_package.Renamed") == {"width", "depth"}
    assert "own_package" not in sys.modules


def test_loggers_are_those_that_can_be_made():
    from project.training.loggers import KNOWN

    assert LOGGERS == KNOWN


HEAVY = {"torch", "lightning", "torchmetrics", "albumentations", "numpy", "h5py", "jsonargparse", "matplotlib", "scipy"}
TOLD = [
    ["--help"],
    ["train", "unet_mse", "--trainer.max_epoch", "3"],
    ["train", "unet_mse", "--model.init_args.net.class_path", "project.models.unet.Unet"],
    ["train", "unet_mse", "--logger", "tensorbord"],
    ["train", "unet_mse", "--data.dataset", "nothing"],
    ["batch", "unet_msee"],
    ["eval"],
    ["data", "yeasts"],
    ["data", "yeast", "--proceses", "2"],
]


@pytest.mark.parametrize("words", TOLD, ids=" ".join)
def test_nothing_heavy_is_imported_to_tell_it(tmp_path, words):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    code = f"import sys; from project.cli import main; main({words!r}); print(*{HEAVY!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] == ""
    assert "Traceback" not in done.stderr


UNUSED = {
    "unet_mse": {"timm", "segmentation_models_pytorch", "sklearn", "skimage", "wandb", "pandas"},
    "resnet_ce": {"sklearn", "pandas"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNUSED)
def test_an_experiment_imports_what_it_uses(tmp_path, write_tiny, name):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_tiny(tmp_path / "data/processed/yeast", roles=("image", "target", "mask", "instances"), n_labels=3)
    words = ["train", name, "--data.crop", "32", "--data.batch_size", "2", "--trainer.fast_dev_run", "1"]
    code = (
        f"import sys; from project.cli import main; assert main({words!r}) == 0; "
        f"print(*{UNUSED[name]!r} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
