"""Proposal of a data config from a look at a folder of raw files.

In the order of reading: `propose` (all steps), `streams` (names of files and folders: what is constant, what a field,
which texts stand beside the same id), `words` (what a text says), `pixels` (images, classes or object numbers), `roles`
(both together), `fields` (class, group or id), `tables`, `arrays`, and `keys` and `draft` (the text of the config).
"""
