"""Where log lines go. Imports errors."""
