"""What happens around a model: run folder, training, evaluation, comparison."""
