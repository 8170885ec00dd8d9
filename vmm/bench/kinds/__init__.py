"""What is measured: one file for each kind, one run of one contender at a time."""
