"""One file for each part of the house that reads what it cannot trust; `ALL` is in registry.py."""
