"""Real PCI devices in the guest, through VFIO."""
