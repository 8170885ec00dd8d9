"""An instance's side of whoever looks at its guest from another process; loaded by the first."""
