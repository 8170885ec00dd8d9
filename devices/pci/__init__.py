"""The PCI bus: configuration space, base address registers, host bridge, MSI-X."""
