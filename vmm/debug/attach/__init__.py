"""A running instance's guest, from another process of the same user."""
