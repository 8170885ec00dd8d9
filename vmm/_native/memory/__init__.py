"""Guest RAM: regions, bounds, views."""
