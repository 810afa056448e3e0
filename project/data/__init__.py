"""Raw files -> HDF5 splits -> batches."""
