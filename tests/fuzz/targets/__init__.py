"""One file for each part of the house that reads what it cannot trust; registry.py has them all."""
