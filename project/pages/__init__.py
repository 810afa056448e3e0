"""HTML pages about datasets, runs and comparisons."""
