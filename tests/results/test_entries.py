"""Entries of a table: runs of one configuration."""

from types import SimpleNamespace

import pytest

from project.results.entries import Entry


def test_each_fold_counts_once_however_many_seeds_it_has():
    runs = [
        SimpleNamespace(metrics={"dice": value}, identity=SimpleNamespace(fold=fold))
        for fold, value in [(0, 0.4), (0, 0.5), (0, 0.6), (1, 0.9)]
    ]
    assert Entry("e", runs).values == {"dice": pytest.approx(0.7)}
