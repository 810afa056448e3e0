"""Fixtures of the tests of inspections."""

from functools import partial

import numpy as np
import pytest
from inspected_data import Prepared, make_noise


@pytest.fixture
def prepared(tmp_path):
    """An empty dataset."""
    return Prepared(tmp_path)


@pytest.fixture
def noise():
    """Makes images of noise, the same in each test."""
    return partial(make_noise, np.random.default_rng(0))
