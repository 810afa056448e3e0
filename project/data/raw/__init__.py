"""From raw files to samples: what is where, and how its pixels are read."""
