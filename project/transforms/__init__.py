"""Transforms on the device: normalization and augmentation."""
