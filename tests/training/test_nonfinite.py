"""A loss or weight that is not finite ends the training, is explained, and spoils no checkpoint."""

from pathlib import Path

import pytest
import torch
from torch import nn

from project.runs.run_folder import Run
from project.tasks.translation import TranslationTask
from project.training import nonfinite
from project.training.nonfinite import NonFiniteMonitor

STEPS = 6  # 12 images in batches of 2


WORDS = ["--data.batch_size", "2", "--trainer.max_epochs", "3"]


@pytest.fixture
def spoil(monkeypatch):
    """Lets a value in a layer be infinite, in a step of the training, so many times."""

    def at(step: int, times: int = 1, what: str = "output") -> list[list[int]]:
        real, seen = TranslationTask.training_step, []

        def training_step(self, batch, batch_idx):
            if self.global_step != step or len(seen) >= times:
                return real(self, batch, batch_idx)
            seen.append(batch["index"].tolist())
            if what == "loss":
                return real(self, batch, batch_idx) * torch.nan
            if what == "weights":
                loss = real(self, batch, batch_idx)
                return loss + (loss - loss.detach()) * 1e38 * 1e38  # finite, but its gradient is not

            def infinite(module, inputs, output):
                output = output.clone()
                output[0, 0, 0, 0] = torch.inf
                return output

            layer = next(m for m in self.net.modules() if isinstance(m, nn.BatchNorm2d))
            layer.register_forward_hook(infinite, prepend=True)
            return real(self, batch, batch_idx)

        monkeypatch.setattr(TranslationTask, "training_step", training_step)
        return seen

    return at


def checkpoint(run: Run, name: str):
    return torch.load(run.checkpoints / f"{name}.ckpt", weights_only=True)


def test_a_loss_without_reduction_is_refused(train, capsys):
    train(
        "--model.init_args.loss={class_path: torch.nn.MSELoss, init_args: {reduction: none}}", "--unchecked", expect=2
    )
    text = capsys.readouterr().err
    assert "a loss is one number, and this has shape" in text
    assert "Traceback" not in text


def test_without_a_last_checkpoint_the_reason_is_shown(train, spoil, capsys):
    spoil(STEPS + 2)
    train("--checkpoint.save_last", "false", expect=2)
    text = capsys.readouterr().err
    assert "the loss is not finite" in text
    assert "Last good checkpoint: none" in text


def test_the_first_loss_that_is_not_finite_ends_the_training_and_is_explained(train, spoil, history, capsys):
    seen = spoil(STEPS + 2)
    run = train(expect=2)
    text = capsys.readouterr().err
    assert "the loss is not finite" in text
    assert "in epoch 2, batch 3" in text
    assert all(f"train{i:02d}" in text for i in seen[0])
    assert "--trainer.detect_anomaly true names the layer" in text
    assert "(after 1 epochs)" in text
    assert f'make train RESUME={Path("runs/unet_mse", run.folder.name)} ARGS="--optimizer.init_args.lr 0.0003"' in text
    # The good checkpoints are as they were.
    assert checkpoint(run, "last")["global_step"] == STEPS
    assert all(value.isfinite().all() for value in checkpoint(run, "best")["state_dict"].values())
    assert run.read("provenance.json")["status"] == "interrupted"
    assert [row["epoch"] for row in history(run)] == ["0"]


def test_detect_anomaly_names_the_first_layer(train, spoil, capsys):
    seen = spoil(2)
    train("--trainer.detect_anomaly", "true", expect=2)
    message = capsys.readouterr().err
    assert "an output is not finite in epoch 1, batch 3" in message
    assert all(f"train{i:02d}" in message for i in seen[0])
    assert "the first layer whose output is not finite: net." in message
    assert "(BatchNorm2d)" in message


def test_weights_that_are_not_finite_are_found_before_they_are_kept(train, spoil, capsys):
    spoil(2 * STEPS - 1, what="weights")  # in the last step of an epoch, whose loss is finite
    run = train(expect=2)
    assert "are not finite in epoch 2" in capsys.readouterr().err
    assert checkpoint(run, "last")["global_step"] == STEPS


# Losses that are checked together ------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch):
    """As on a GPU."""
    real = NonFiniteMonitor.on_train_start

    def hook(self, trainer, pl_module):
        real(self, trainer, pl_module)
        self.every = nonfinite.CHECK_EVERY

    monkeypatch.setattr(NonFiniteMonitor, "on_train_start", hook)


@pytest.mark.slow
@pytest.mark.parametrize("every", [4, pytest.param(50, marks=pytest.mark.nightly)])
def test_losses_that_are_checked_later_name_their_batch(train, spoil, patient, monkeypatch, capsys, every):
    monkeypatch.setattr(nonfinite, "CHECK_EVERY", every)
    seen = spoil(STEPS + 1)
    run = train(expect=2)
    text = capsys.readouterr().err
    assert "in epoch 2, batch 2" in text
    assert all(f"train{i:02d}" in text for i in seen[0])
    assert "detect_anomaly" in text
    assert checkpoint(run, "last")["global_step"] == STEPS
    assert all(value.isfinite().all() for value in checkpoint(run, "best")["state_dict"].values())
