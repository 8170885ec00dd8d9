"""What is measured, always beside others in one run; see README.md."""
