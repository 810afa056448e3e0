"""What is in a prepared dataset: `make inspect`."""
