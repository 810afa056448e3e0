"""Build, train and evaluate one experiment; README.md is the map."""
