"""The command line, the only part that prints. Imports all others; none imports it."""
