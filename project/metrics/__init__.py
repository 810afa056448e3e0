"""Metrics per sample and pooled."""
