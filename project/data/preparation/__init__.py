"""From samples to HDF5 splits: `make data`."""
