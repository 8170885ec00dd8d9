"""What this host has, and our ends of it. Imports settings and log, and what is below them."""
