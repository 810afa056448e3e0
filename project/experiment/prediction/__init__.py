"""From a run to predictions on raw images, and to files that other programs run."""
