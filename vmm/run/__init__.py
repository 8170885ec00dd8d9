"""An instance in this process, from its lock to its end. Imports machine and all below."""
