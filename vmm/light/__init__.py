"""Light stand-ins for the standard library's heavy parts. Imports nothing of ours."""
