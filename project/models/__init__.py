"""Networks and baselines. Any `torch.nn.Module` can stand in an experiment file; these are the project's own."""
