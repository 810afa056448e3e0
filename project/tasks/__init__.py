"""What is learned: loop, loss, metrics. One file per task."""
