"""Runs on the same split of the same data, with intervals and tests."""
