"""The request loop of a block device, and its two engines."""
