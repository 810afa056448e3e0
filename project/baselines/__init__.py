"""Baselines: what a network must beat."""
