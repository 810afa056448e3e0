"""Preparation (`make data`): raw files -> one HDF5 file per split.

- `find`: samples and the headers of their files
- `plan`, with `splits` and `sizes`: the split of each sample, its windows, the shards; images without targets
- `shards`, with `pixels`: reads, checks and writes one shard; `workers` runs many and shows the progress
- `write`, with `classes`: all shards, leakage (`project.data.leakage`), and the split files
- `prepare`: the whole, complete or not at all; `estimate`: what it will take; `outdated`: what has changed since
"""
