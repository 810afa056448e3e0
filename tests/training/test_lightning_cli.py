"""Types of options, whatever was imported before."""

from typing import Any

import pytest
from jsonargparse import ArgumentParser

from project.training.lightning_cli import integers_first


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("1.0", 1.0), ("0.5", 0.5), ("null", None)])
def test_a_number_of_batches_is_no_share_of_them(text: str, value: Any):
    def train(limit: float | int | None = None):
        """As a union of typing is read once another package has built it in this order."""

    integers_first(train)
    parser = ArgumentParser()
    parser.add_function_arguments(train)
    limit = parser.parse_args([f"--limit={text}"]).limit
    assert (limit, type(limit)) == (value, type(value))
