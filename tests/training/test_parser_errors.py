"""Mistakes in a configuration: one line with the key, what is wrong and the nearest valid name."""

import pytest
import yaml

from project.errors import UserError
from project.training.lightning_cli import check_config

NET = "--model.init_args.net"
EARLY = "lightning.pytorch.callbacks.EarlyStopping"
WRONG = {
    "section": (["--trianer.max_epochs", "3"], 'Did you mean "trainer.max_epochs"?'),
    "argument": ([f"{NET}.init_args.in_chanels", "3"], "model.net: project.models.unet.UNet: Option 'in_chanels'"),
    "nearest argument": ([f"{NET}.init_args.in_chanels", "3"], 'Did you mean "in_channels"?'),
    "argument of a base class": (["--model.init_args.size_divisorr", "8"], 'Did you mean "size_divisor"?'),
    "package": ([f"{NET}.class_path", "smp.Unet"], "model.net: smp.Unet: No module named 'smp'"),
    "class": ([f"{NET}.class_path", "project.models.unet.Unet"], 'Did you mean "UNet"?'),
    "class in a list": (["--data.transforms", "[{class_path: albumentations.D5}]"], 'Did you mean "D4"?'),
    "function": ([NET, "torch.nn.functional.relu"], "does not correspond to a subclass of Module"),
    "number": (["--trainer.max_epochs", "three"], 'trainer.max_epochs: Expected a int, got "three"'),
    "infinite": (["--optimizer.init_args.lr", "inf"], 'Expected a float, got "inf"'),
    "list": (["--data.transforms", "albumentations.D4"], "data.transforms: Expected a list"),
    "choice": (["--model.init_args.input_normalization", "mean_sdt"], 'Did you mean "mean_std"?'),
    "required": (["--trainer.callbacks", EARLY], "arguments are required: monitor"),
    "no option": (["trainer.max_epochs=3"], "write --trainer.max_epochs"),
    "alias of itself": (["--data.crop", "&a [*a]"], "data.crop: "),
    "seed": (["--seed_everything", "-1"], "seed_everything is -1: write a number from 0"),
    "refused": (["--trainer.overfit_batches", "2"], "a training does not take"),
}


@pytest.fixture(scope="module")
def content(workplace):
    return yaml.safe_load((workplace / "configs/experiments/unet_mse.yaml").read_text())


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=list(WRONG))
def test_mistakes_on_the_command_line(content, words, message):
    with pytest.raises(UserError) as error:
        check_config(content, words)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def test_mistakes_in_files(content):
    with pytest.raises(UserError, match=r'optimiser.*Did you mean "optimizer'):
        check_config({**content, "optimiser": {"lr": 1}}, [])
    with pytest.raises(UserError, match=r'batch_sise.*Did you mean "data.batch_size"'):
        check_config({**content, "data": {"batch_sise": 3}}, [])
    for section in ({"trainer": {"gradient_clip_algorithm": False}}, {"checkpoint": {"monitor": True}}):
        with pytest.raises(UserError, match="YAML reads no, off, yes and on as true or false"):
            check_config({**content, **section}, [])


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelSummary"],
        [NET, "torch.nn.Conv2d", f"{NET}.init_args", "{in_channels: 1, out_channels: 1, kernel_size: 3}"],
        ["--optimizer", "SGD", "--optimizer.momentum", "0.9"],
        ["--lr_scheduler", "null"],
        ["--optimizer.init_args.lr", "-1e-4"],
    ],
    ids=lambda words: words[0],
)
def test_valid_overrides(content, words):
    check_config(content, words)


@pytest.mark.parametrize(("line", "error"), [("import notthere", "No module named"), ("x = wrongname", "NameError")])
@pytest.mark.parametrize("words", [[NET, "{}.Net"], ["--trainer.callbacks", "[{}.Net]"]], ids=["net", "callback"])
def test_a_fault_of_an_imported_file_shows_its_line(content, tmp_path, monkeypatch, line, error, words):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "brokenfile.py").write_text(f"import torch\n{line}\n")
    with pytest.raises(UserError, match=r'brokenfile.py", line 2') as refusal:
        check_config(content, [word.format("brokenfile") for word in words])
    assert error in str(refusal.value)
