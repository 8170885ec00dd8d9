"""ACPI tables of the platform (ACPI 6.3, hardware-reduced), written directly as bytes."""
