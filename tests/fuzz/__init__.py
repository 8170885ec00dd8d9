"""Inputs by the million for everything that reads what a guest, a file or a stranger wrote."""
