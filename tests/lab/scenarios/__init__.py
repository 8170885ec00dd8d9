"""Functions that run inside the lab, each called by a test outside of it."""
