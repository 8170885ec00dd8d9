"""Light stand-ins for heavy parts of the standard library. Imports nothing of ours."""
