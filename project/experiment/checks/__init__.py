"""What is looked at before a training: one function for each check, all thresholds in one place."""
