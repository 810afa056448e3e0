"""From the fingerprint of a prepared dataset to an experiment, each decision with its reason."""
