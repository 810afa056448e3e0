"""Predict images with trained runs; export."""
