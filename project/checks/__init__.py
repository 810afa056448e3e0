"""Checks before training: mistakes that a user can make."""
