"""Proposal of a data config from a look at a folder of raw files."""
