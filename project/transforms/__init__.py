"""Transforms on the device: normalisation and augmentation."""
