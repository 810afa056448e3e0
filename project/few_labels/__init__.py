"""Few labels: pseudo-labels and label efficiency."""
