"""Preparation (`make data`): raw files -> one HDF5 file per split.

- `find`: samples and the headers of their files; `unlabeled` for images without targets
- `plan`, with `splits`, `sizes` and `series`: the split of each sample, its windows, the shards
- `shards`, with `pixels`: reads, checks and writes one shard; `workers` and `progress` run many
- `write`, with `copies` and `classes`: all shards, leakage, and the split files
- `prepare`: the whole, complete or not at all; `estimate`: what it will take; `outdated`: what has changed since
"""
