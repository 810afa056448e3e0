"""How often the progress bar is brought up to date, and whose it is."""

from types import SimpleNamespace

from lightning.pytorch.callbacks import RichProgressBar

from project.training import progress
from project.training.progress import Progress


def test_bar_shows_ten_steps_a_second_and_the_last(monkeypatch):
    shown = []
    monkeypatch.setattr(RichProgressBar, "on_train_batch_end", lambda *given: shown.append(given[-1]))
    bar, trainer = Progress(), SimpleNamespace(num_training_batches=100)
    for step in range(100):  # of 10 ms each
        monkeypatch.setattr(progress.time, "monotonic", lambda now=step: 1000 + now * 0.01)
        bar.on_train_batch_end(trainer, None, None, None, step)
    assert 9 <= len(shown) - 1 <= 10
    assert shown[0] == 0
    assert shown[-1] == 99
