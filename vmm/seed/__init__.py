"""The verb `seed`: a NoCloud image for the guest's cloud-init. Imports errors."""
