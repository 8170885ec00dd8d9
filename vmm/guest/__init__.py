"""What the guest's software is, read from outside. Imports errors and layout."""
