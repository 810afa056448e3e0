"""Batch sizes are tried on a GPU."""

import pytest
import torch

from project.cli import main

TINY = ["--model.init_args.net.init_args.width", "4", "--data.crop", "32"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_batch_sizes_are_not_tried_on_a_cpu(workplace, capsys):
    assert main(["batch", "unet_mse", *TINY, "--data.batch_size", "4"]) == 2
    assert "on GPUs only" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batch_sizes_up_to_the_number_of_samples(workplace, capsys):
    assert main(["batch", "unet_mse", *TINY]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.strip()[:1].isdigit()] == ["1", "2", "4", "8"]
    assert lines[-1] == "the data has no larger batch than 8"
